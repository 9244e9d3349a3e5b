package plan

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/applevm/applevm/internal/shortdir"
	"github.com/applevm/applevm/shim/sockets"
)

func TestSharedSockets(t *testing.T) {
	dir := shortdir.New(t)
	var mounts []specs.Mount
	for i, name := range []string{"a", "b", "a"} {
		path := filepath.Join(dir, name)
		l, err := net.Listen("unix", path)
		if err == nil {
			defer l.Close()
			err = os.Chmod(path, 0o620)
		} else if i == 2 {
			err = nil
		}
		if err != nil {
			t.Fatal(err)
		}
		mounts = append(mounts, specs.Mount{Destination: fmt.Sprint("/s", i), Type: "none", Source: path, Options: []string{"rbind", "rprivate"}})
	}
	p, err := New(input(t, func(s *specs.Spec) { s.Mounts = mounts }))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}; !slices.Equal(p.Sockets, want) {
		t.Errorf("sockets %q, want %q", p.Sockets, want)
	}
	owner := fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())
	if os.Getuid() != 0 {
		owner = "0:0"
	}
	for i, m := range guestSpecOf(t, p).Mounts {
		if want := fmt.Sprintf("%d:620:%s", i%2, owner); m.Source != want || !slices.Equal(m.Options, []string{"rprivate"}) {
			t.Errorf("mount %d: %q %q, want %q", i, m.Source, m.Options, want)
		}
	}
}

func TestPublishedSockets(t *testing.T) {
	long := "/" + strings.Repeat("x", 103)
	for name, tt := range map[string]struct {
		text string
		want []sockets.Publication
		err  string
	}{
		"none":           {"", nil, ""},
		"several":        {"/tmp/a.sock:/run/a.sock, /tmp/../b:/c,", []sockets.Publication{{Host: "/tmp/a.sock", Container: "/run/a.sock"}, {Host: "/b", Container: "/c"}}, ""},
		"one path":       {"/tmp/a.sock", nil, "is not HOST-PATH:CONTAINER-PATH"},
		"relative":       {"/tmp/a:run/a", nil, "is not HOST-PATH:CONTAINER-PATH"},
		"too long":       {long + ":/a", nil, "longer than the 103 bytes"},
		"long inside":    {"/a:" + strings.Repeat("/x", 2048), nil, "more than 4095 bytes"},
		"one path twice": {"/tmp/a:/b,/tmp/./a:/c", nil, "two sockets are published as /tmp/a"},
	} {
		got, err := publishedSockets(map[string]string{AnnotationPublishSocket: tt.text})
		if !slices.Equal(got, tt.want) || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, %v; want %v, %q", name, got, err, tt.want, tt.err)
		}
	}
	var many []string
	for i := range 65 {
		many = append(many, fmt.Sprintf("/tmp/%d:/a", i))
	}
	if _, err := publishedSockets(map[string]string{AnnotationPublishSocket: strings.Join(many, ",")}); err == nil || !strings.Contains(err.Error(), "more than 64") {
		t.Errorf("65 sockets: %v", err)
	}
}
