package agent

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/applevm/applevm/internal/treelist"
)

var times = regexp.MustCompile(` mtime=\S+`)

func TestFillVolumes(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	at := func(name string) string { return filepath.Join(root, name) }
	must := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	must(os.MkdirAll(at("data/sub"), 0o750), os.WriteFile(at("data/f"), []byte("text"), 0o4640), os.Chown(at("data/f"), 12, 34),
		os.Chmod(at("data/f"), 0o4640), os.Symlink("/etc/passwd", at("data/link")), os.Link(at("data/f"), at("data/sub/same")),
		unix.Mkfifo(at("data/fifo"), 0o600), os.Chown(at("data"), 5, 6), unix.Setxattr(at("data/f"), "user.x", []byte("1"), 0),
		os.WriteFile(filepath.Join(outside, "secret"), nil, 0o600), os.Symlink(outside, at("out")), os.Symlink("/data", at("in")),
		os.WriteFile(at("file"), nil, 0o644), os.WriteFile(at("data/sub/late"), nil, 0o600))
	list := func(dir string) []string {
		t.Helper()
		l, err := treelist.List(dir, treelist.Options{})
		must(err)
		for i := range l { // directories take the time of what is made in them
			l[i] = times.ReplaceAllString(l[i], "")
		}
		return l
	}
	want := list(at("data"))
	for name, tt := range map[string]struct {
		destination string
		filled      bool
	}{
		"a directory":             {"/data", true},
		"by a link":               {"/in/", true},
		"nothing":                 {"/nosuch/dir", false},
		"a file":                  {"/file", false},
		"a link that leads out":   {"/out", false},
		"a path that leads out":   {"/../../" + outside, false},
		"a magic link":            {"/proc/self/root", false},
		"below what is no longer": {"/file/x", false},
	} {
		v := volume{t.TempDir(), tt.destination}
		before := list(v.dir)
		must(v.fill(root))
		got := list(v.dir)
		if tt.filled {
			before = want
		}
		if len(got) != len(before) {
			t.Errorf("%s: %q, want %q", name, got, before)
			continue
		}
		for i := range got {
			if got[i] != before[i] {
				t.Errorf("%s: %q, want %q", name, got[i], before[i])
			}
		}
	}
	used := volume{t.TempDir(), "/data"}
	must(os.WriteFile(filepath.Join(used.dir, "mine"), nil, 0o600), used.fill(root))
	if l, err := os.ReadDir(used.dir); err != nil || len(l) != 1 {
		t.Errorf("a volume in use: %v, %v", l, err)
	}
}
