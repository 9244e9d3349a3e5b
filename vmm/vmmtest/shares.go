package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/applevm/applevm/guest/image"
	"github.com/applevm/applevm/vmm"
	"github.com/applevm/applevm/vmm/vmmtest/proto"
)

// testShares has a guest use shared directories in all ways, and finds on the host
// what it has left there.
func (s *Suite) testShares(t *testing.T, img image.Image) {
	top := t.TempDir()
	rw, ro := filepath.Join(top, "rw"), filepath.Join(top, "ro")
	if err := errors.Join(
		os.Mkdir(ro, 0o755), os.Mkdir(rw, 0o755), os.Mkdir(filepath.Join(rw, "from-host"), 0o755),
		os.WriteFile(filepath.Join(top, "outside"), []byte("the host's"), 0o644),
		os.WriteFile(filepath.Join(ro, "hello"), []byte("hello\n"), 0o644),
		os.WriteFile(filepath.Join(rw, "from-host/hello"), []byte("hello\n"), 0o644),
		os.Symlink("../../outside", filepath.Join(rw, "from-host/out")),
	); err != nil {
		t.Fatal(err)
	}
	cfg := config(t, img)
	cfg.Shares = []vmm.Share{{Tag: "rw", Path: rw}, {Tag: "ro", Path: ro, ReadOnly: true}}
	g := Boot(t, s.Driver(t), cfg)

	before := listTree(t, ro)
	if _, err := g.Call(timeout(t), proto.Request{Op: proto.OpReadOnly, Share: "ro"}); err != nil {
		t.Errorf("read-only share: %v", err)
	}
	if after := listTree(t, ro); !slices.Equal(before, after) {
		t.Errorf("the read-only share has changed: %q, before %q", after, before)
	}

	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	resp, err := g.Call(ctx, proto.Request{Op: proto.OpShare, Share: "rw"})
	if err != nil {
		t.Fatal(err)
	}
	want := listTree(t, rw)
	if len(want) < 40 {
		t.Errorf("only %d files on the host", len(want))
	}
	if diff := lineDiff(want, resp.Files); diff != "" {
		t.Errorf("host (-) and guest (+) see different files:\n%s", diff)
	}
	// The machine is paused and goes on between requests, with its files.
	if err := errors.Join(g.Pause(timeout(t)), g.Resume(timeout(t))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(ro, "hello"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Call(timeout(t), proto.Request{Op: proto.OpReadOnly, Share: "ro"}); err != nil {
		t.Errorf("after a pause: %v", err)
	}
	if err := g.Stop(timeout(t)); err != nil {
		t.Error(err)
	}
	if held := openBelow(t, top); len(held) > 0 {
		t.Errorf("held after the machine's end: %q", held)
	}
}

// lineDiff returns at most ten lines that only one of the lists has.
func lineDiff(a, b []string) string {
	var out strings.Builder
	n := 0
	add := func(sign string, from, to []string) {
		for _, l := range from {
			if !slices.Contains(to, l) && n < 10 {
				fmt.Fprintf(&out, "%s %s\n", sign, l)
				n++
			}
		}
	}
	add("-", a, b)
	add("+", b, a)
	return out.String()
}
