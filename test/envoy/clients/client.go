// Sends a request over HTTP/2 with prior knowledge, and prints as JSON what Go's client got of the
// response, and whether it takes that for whole.
package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
)

func main() {
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	client := http.Client{Transport: &http.Transport{Protocols: &protocols}}
	response, err := client.Post(os.Args[1], "application/json", strings.NewReader(os.Args[2]))
	got := map[string]any{"body": "", "whole": false}
	if err == nil {
		body, err := io.ReadAll(response.Body)
		got["body"], got["whole"] = string(body), err == nil
	}
	if err := json.NewEncoder(os.Stdout).Encode(got); err != nil {
		panic(err)
	}
}
