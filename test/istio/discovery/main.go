// Istio's discovery server over manifests in memory: the generators and the xDS of istiod, without
// Kubernetes.
//
// The program prints `listening <address>`. Each line of standard input names a file with all
// manifests (YAML). They become the whole configuration of the server, and it answers `applied
// <number>` or `refused <why>`. The program ends when standard input does.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"istio.io/istio/pilot/pkg/config/kube/crd"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/test/xds"
	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/test"
)

func main() {
	if err := test.Wrap(serve); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(t test.Failer) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := xds.NewFakeDiscoveryServer(t, xds.FakeOptions{
		ListenerBuilder: func() (net.Listener, error) { return listener, nil },
		// As in istiod, the objects of one file are pushed together.
		DebounceTime: 50 * time.Millisecond,
	})
	fmt.Println("listening", listener.Addr())
	applied := map[string]config.Config{}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		next, err := read(lines.Text())
		if err == nil {
			err = apply(server.Store(), applied, next)
		}
		if err != nil {
			fmt.Println("refused", strings.ReplaceAll(err.Error(), "\n", "; "))
			continue
		}
		applied = next
		fmt.Println("applied", len(applied))
	}
}

func read(path string) (map[string]config.Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	configs, others, err := crd.ParseInputs(string(text))
	if err != nil {
		return nil, err
	}
	if len(others) > 0 {
		return nil, fmt.Errorf("%s %s is not Istio's", others[0].Kind, others[0].Name)
	}
	found := map[string]config.Config{}
	for i, c := range configs {
		if c.Namespace == "" {
			c.Namespace = "default"
		}
		c.Domain = "cluster.local"
		// The order of the objects in the file becomes the order of their creation, which decides between
		// patches of the same priority.
		c.CreationTimestamp = time.Unix(int64(i), 0)
		found[c.Key()] = c
	}
	return found, nil
}

// Replaces the contents `applied` of the store with `next`.
func apply(store model.ConfigStoreController, applied, next map[string]config.Config) error {
	for key, c := range next {
		old, ok := applied[key]
		if ok && old.Equals(&c) {
			continue
		}
		write := store.Create
		if ok {
			write = store.Update
		}
		if _, err := write(c); err != nil {
			return err
		}
	}
	for key, c := range applied {
		if _, ok := next[key]; ok {
			continue
		}
		if err := store.Delete(c.GroupVersionKind, c.Name, c.Namespace, nil); err != nil {
			return err
		}
	}
	return nil
}
