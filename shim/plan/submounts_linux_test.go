package plan

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/applevm/applevm/vmm"
)

func TestSubmountWarnings(t *testing.T) {
	below := func(dir string) ([]string, error) {
		switch dir {
		case "/none":
			return nil, nil
		case "/fails":
			return nil, errors.New("no answer")
		}
		return []string{dir + "/a", dir + "/b"}, nil
	}
	shares := []vmm.Share{{Path: "/two", OneMount: true}, {Path: "/two"}, {Path: "/none", OneMount: true}, {Path: "/fails", OneMount: true}, {Files: []string{"/f"}, OneMount: true}}
	got := submountWarnings(shares, below)
	if len(got) != 2 || !strings.HasSuffix(got[0], "/two/a, /two/b") || !strings.Contains(got[1], "no answer") {
		t.Errorf("%q", got)
	}
	if got := submountWarnings(shares, nil); got != nil {
		t.Errorf("with a driver that leaves it out: %q", got)
	}
	// The host's own: /proc and others are below the root.
	list, err := submounts("/")
	if err != nil || !slices.Contains(list, "/proc") || slices.Contains(list, "/") {
		t.Errorf("below the root: %q, %v", list, err)
	}
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/", link); err != nil {
		t.Fatal(err)
	}
	if list, err := submounts(link); err != nil || !slices.Contains(list, "/proc") {
		t.Errorf("below a link to it: %q, %v", list, err)
	}
	if list, err := submounts(dir); err != nil || len(list) > 0 {
		t.Errorf("below a directory: %q, %v", list, err)
	}
}
