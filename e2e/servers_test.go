package e2e

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

// importImage gives a stack an image that archive makes or finds.
func importImage(t *testing.T, s *stack.Stack, archive func(context.Context) (string, error)) {
	t.Helper()
	file, err := archive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Import(t.Context(), file); err != nil {
		t.Fatal(err)
	}
}

// getPage asks for the page of the HTTP server at a port of the host's loopback. It returns what the
// server calls itself as well, and whether there is a page.
func getPage(port string) (page, server string, ok bool) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://127.0.0.1:" + port + "/")
	if err != nil {
		return "", "", false
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), r.Header.Get("Server"), err == nil && r.StatusCode == http.StatusOK
}

// redisClient keeps asking until a Redis called by a name has kept what it was told.
func redisClient(host string) string {
	return "for i in $(seq 200); do redis-cli -h " + host + " set greeting hello && break; sleep 0.2; done; redis-cli -h " + host + " get greeting"
}

// TestServersUnprivileged: nginx behind a published port, which an HTTP client on the
// host asks and which asks Redis's container by its name; all without privilege.
func TestServersUnprivileged(t *testing.T) {
	s := newStack(t, stack.Options{Unprivileged: true})
	importImage(t, s, images.Servers)
	port := freePort(t)
	run := func(id string, flags []string, cmd ...string) {
		t.Helper()
		t.Cleanup(func() { remove(t, s, id) })
		flags = append([]string{"-d", "--annotation", "dev.applevm.network=shop"}, flags...)
		must(t, s.CtrRun(t.Context(), append(append(flags, images.ServersRef, id), cmd...)...))
	}
	run("redis", nil, "redis-server", "--protected-mode", "no", "--save", "", "--bind", "* -::*")
	run("web", []string{"--annotation", "dev.applevm.publish=127.0.0.1:" + port + ":80"}, "nginx", "-g", "daemon off;")
	var page string
	waitFor(t, "nginx's page", func() bool {
		var server string
		var ok bool
		page, server, ok = getPage(port)
		return ok && strings.HasPrefix(server, "nginx")
	})
	if !strings.Contains(page, "Welcome to nginx!") {
		t.Errorf("the page is %q", page)
	}
	out := must(t, s.CtrExec(t.Context(), "--exec-id", "e", "web", "bash", "-c", redisClient("redis")))
	if !strings.HasSuffix(out, "hello\n") {
		t.Errorf("redis-cli: %q", out)
	}
}
