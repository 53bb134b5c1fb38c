// Pulls an OCI image layout as Istio's agent pulls the image of a WasmPlugin: through a registry,
// with the agent's own fetcher. Prints the sha256 of the Wasm module that it gets.
//
// usage: pull <layout folder>
package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"istio.io/istio/pkg/wasm"
)

func main() {
	digest, err := pull(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(digest)
}

func pull(folder string) (string, error) {
	image, err := taggedImage(folder)
	if err != nil {
		return "", err
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	url := strings.TrimPrefix(server.URL, "http://") + "/routed-experts-filter:test"
	reference, err := name.ParseReference(url)
	if err != nil {
		return "", err
	}
	if err := remote.Write(reference, image); err != nil {
		return "", err
	}
	fetch, _, err := wasm.NewImageFetcher(context.Background(), wasm.ImageFetcherOption{}).PrepareFetch(url)
	if err != nil {
		return "", err
	}
	binary, err := fetch()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", sha256.Sum256(binary)), nil
}

// The annotation of the manifest that tools tag; its referrers stand beside it in the index.
const refName = "org.opencontainers.image.ref.name"

func taggedImage(folder string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(folder)
	if err != nil {
		return nil, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	var found []v1.Hash
	for _, each := range manifest.Manifests {
		if each.Annotations[refName] != "" {
			found = append(found, each.Digest)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%d manifests with a tag in the index", len(found))
	}
	return index.Image(found[0])
}
