package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/applevm/applevm/e2e/stack"
)

// TestSoakTwentyAtOnce does it with twenty.
func TestManyAtOnce(t *testing.T) { manyAtOnce(t, 6) }

// manyAtOnce shows that many containers that start at the same moment all run, each can
// be entered, and when they are removed, at the same moment too, nothing is left of them.
func manyAtOnce(t *testing.T, n int) {
	s := rootStack(t)
	ctx := t.Context()
	// What the first container makes once is no leftover.
	must(t, s.NerdctlRun(ctx, "--rm", img, "true"))
	clean(t, s)
	before := traces(t, s)

	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("crowd-%d", i)
	}
	t.Cleanup(func() {
		_ = s.Nerdctl(context.Background(), append([]string{"rm", "-f"}, names...)...).Run()
	})
	each := func(what string, f func(i int, name string) error) {
		t.Helper()
		var wg sync.WaitGroup
		for i, name := range names {
			wg.Go(func() {
				if err := f(i, name); err != nil {
					t.Errorf("%s %s: %v", what, name, err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	run := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, crowdLimit)
		defer cancel()
		cmd := s.Nerdctl(ctx, args...)
		r, err := finish(ctx, cmd)
		if err == nil && r.code != 0 {
			err = fmt.Errorf("%q: %s", args, r)
		}
		return strings.TrimSpace(r.stdout), err
	}

	ids := make([]string, len(names))
	each("start", func(i int, name string) (err error) {
		ids[i], err = run("run", "-d", "--runtime", "io.containerd.applevm.v1", "--net", "none", "--name", name, img,
			"sh", "-c", "echo "+name+" >/mine; exec sleep 100000")
		return err
	})
	out := must(t, s.Nerdctl(ctx, "ps", "--filter", "status=running", "--format", "{{.Names}}"))
	if got := strings.Fields(out); len(got) != len(names) {
		t.Errorf("%d of %d containers run: %q", len(got), len(names), got)
	}
	if n := len(s.VMMs()); n != len(names) {
		t.Errorf("%d machines for %d containers", n, len(names))
	}
	each("exec in", func(_ int, name string) error {
		out, err := run("exec", name, "cat", "/mine")
		if err == nil && out != name {
			err = fmt.Errorf("/mine holds %q", out)
		}
		return err
	})
	each("remove", func(_ int, name string) error {
		_, err := run("rm", "-f", name)
		return err
	})
	clean(t, s)
	for _, l := range traces(t, s, ids...) {
		if !slices.Contains(before, l) {
			t.Errorf("left behind: %s", l)
		}
	}
}

// crowdLimit bounds each command among many.
const crowdLimit = 10 * time.Minute

// traces lists what containers may leave on the host: files, sockets and mounts of
// the stack, and cgroups of the containers with these ids.
func traces(t *testing.T, s *stack.Stack, ids ...string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(s.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// nerdctl's own backups of its files, which stay with runc too, and locks in the cache.
		if d.Name() == "filesystem-ops" || path == filepath.Join(s.Dir, "cache") {
			return fs.SkipDir
		}
		found = append(found, "file "+path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		// Not ours alone: others' come and go while this looks.
		if err == nil && d.IsDir() && slices.ContainsFunc(ids, func(id string) bool { return strings.Contains(d.Name(), id) }) {
			found = append(found, "cgroup "+path)
		}
		return nil
	})
	for what, file := range map[string]string{"socket": "/proc/net/unix", "mount": "/proc/self/mounts"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(text)) {
			if i := strings.Index(l, s.Dir+"/"); i >= 0 {
				found = append(found, what+" "+strings.TrimSpace(l[i:]))
			}
		}
	}
	return found
}
