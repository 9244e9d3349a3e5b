package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/applevm/applevm/e2e/images"
)

// TestNerdctlCompose: two services on a network of their own, of which one finds
// the other by its name.
func TestNerdctlCompose(t *testing.T) {
	s, ns := cniStack(t)
	file := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(file, []byte(`name: pair
services:
  server:
    image: `+img+`
    runtime: io.containerd.applevm.v1
    command: ["perl", "-e", '`+strings.ReplaceAll(greeter, "$", "$$")+`']
    ports: ["127.0.0.1:8080:80"]
  client:
    image: `+img+`
    runtime: io.containerd.applevm.v1
    depends_on: [server]
    command: ["bash", "-c", "for i in $$(seq 100); do cat </dev/tcp/server/80 && break; sleep 0.2; done; echo; sleep 1000"]
`), 0o644); err != nil {
		t.Fatal(err)
	}
	compose := func(args ...string) []string { return append([]string{"compose", "-f", file}, args...) }
	t.Cleanup(func() { _ = s.Nerdctl(context.Background(), compose("down")...).Run() })
	must(t, s.Nerdctl(t.Context(), compose("up", "-d")...))
	var got string
	waitFor(t, "the client's greeting", func() bool {
		got = do(t, s.Nerdctl(t.Context(), "logs", "pair-client-1")).stdout
		return strings.Contains(got, "hello 10.4.")
	})
	// nerdctl writes the names of those that come later into /etc/hosts.
	waitFor(t, "the client's name in the server", func() bool {
		return strings.Contains(do(t, s.Nerdctl(t.Context(), "exec", "pair-server-1", "getent", "hosts", "pair-client-1")).stdout, "10.4.")
	})
	waitFor(t, "an answer from the published port", func() bool {
		got, _ = ns.fetch(t, "127.0.0.1:8080")
		return strings.HasPrefix(got, "hello ")
	})
	must(t, s.Nerdctl(t.Context(), compose("down")...))
	clean(t, s)
}

// TestComposeRedis: Redis and a client that finds it by its service's name, on
// nerdctl's bridge.
func TestComposeRedis(t *testing.T) {
	s, _ := cniStack(t)
	importImage(t, s, images.Servers)
	file := filepath.Join(t.TempDir(), "compose.yaml")
	if err := os.WriteFile(file, []byte(`name: shop
services:
  cache:
    image: `+images.ServersRef+`
    runtime: io.containerd.applevm.v1
    command: ["redis-server", "--protected-mode", "no", "--save", "", "--bind", "* -::*"]
  client:
    image: `+images.ServersRef+`
    runtime: io.containerd.applevm.v1
    depends_on: [cache]
    command: ["bash", "-c", "`+strings.ReplaceAll(redisClient("cache"), "$", "$$")+`; sleep 1000"]
`), 0o644); err != nil {
		t.Fatal(err)
	}
	compose := func(args ...string) []string { return append([]string{"compose", "-f", file}, args...) }
	t.Cleanup(func() { _ = s.Nerdctl(context.Background(), compose("down")...).Run() })
	must(t, s.Nerdctl(t.Context(), compose("up", "-d")...))
	waitFor(t, "the client's answer from Redis", func() bool {
		return strings.Contains(do(t, s.Nerdctl(t.Context(), "logs", "shop-client-1")).stdout, "OK\nhello\n")
	})
	must(t, s.Nerdctl(t.Context(), compose("down")...))
	clean(t, s)
}
