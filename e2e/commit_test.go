package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/applevm/applevm/e2e/images"
	"github.com/applevm/applevm/e2e/stack"
)

// changes is what a container does to its files, one of each kind.
const changes = `set -e
rm /etc/motd
rm -rf /usr/share/base-files
rm -rf /etc/skel; mkdir /etc/skel; echo new >/etc/skel/new
rm -rf /etc/issue; mkdir /etc/issue; echo x >/etc/issue/x
rm -rf /etc/default; echo file >/etc/default
echo changed >>/etc/debian_version
chmod 4711 /usr/bin/id
chown 70000:80000 /etc/passwd
mkdir -p /new/deep; head -c 3000000 /dev/urandom >/new/deep/data
echo linked >/new/one; ln /new/one /new/two; ln /new/one /etc/three
ln -s ../etc/passwd /new/link
mknod /new/null c 1 3; mkfifo /new/fifo
touch -d '1971-12-31 23:59:58.123456789 UTC' /new/old
truncate -s 1M /new/sparse
/probe setxattr /new/one user.hello world
/probe setxattr /usr/bin/id user.more on-a-copied-up-file
rm -rf /var/cache; mkdir -p /var/cache/apt
`

// probeImage imports Debian's image with the probe in a layer on top of it.
func probeImage(t *testing.T, s *stack.Stack) string {
	t.Helper()
	const ref = "docker.io/library/debian:probe"
	dir := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "probe"), "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	binary, err := os.ReadFile(filepath.Join(dir, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	layer := filepath.Join(dir, "layer.tar")
	if err := images.Layer(layer, images.File{Name: "probe", Mode: 0o755, Content: binary}); err != nil {
		t.Fatal(err)
	}
	base, err := images.Debian(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	archive, err := images.WithLayers(base, ref, dir, layer)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Import(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	return ref
}

// A commit of a container is, run by runc with containerd's overlayfs
// snapshotter, what the container was: while it runs, paused for the
// moment, and when it has ended; compressed in either way.
func TestCommit(t *testing.T) {
	s := rootStack(t)
	ctx := t.Context()
	ref := probeImage(t, s)
	const id = "committed"
	nerdctl := func(args ...string) string {
		t.Helper()
		return must(t, s.Nerdctl(ctx, args...))
	}
	t.Cleanup(func() {
		ctx := context.Background()
		_ = s.Nerdctl(ctx, "rm", "-f", id).Run()
		for _, i := range []string{"running", "stopped"} {
			must(t, s.Nerdctl(ctx, "rmi", "-f", "committed:"+i))
		}
		clean(t, s)
	})
	must(t, s.NerdctlRun(ctx, "-d", "--name", id, ref, "sh", "-c", changes+"touch /ready; exec sleep 1000"))
	waitFor(t, "the container's changes", func() bool {
		return s.Nerdctl(ctx, "exec", id, "test", "-e", "/ready").Run() == nil
	})
	want := nerdctl("exec", id, "/probe", "list")
	nerdctl("commit", "--compression", "gzip", id, "committed:running")
	// It goes on; what it writes last must not be lost in its kernel's memory.
	nerdctl("exec", id, "sh", "-c", "echo late >/new/late")
	wantStopped := nerdctl("exec", id, "/probe", "list")
	nerdctl("stop", "-t", "1", id)
	nerdctl("commit", "--compression", "zstd", id, "committed:stopped")

	for image, want := range map[string]string{"committed:running": want, "committed:stopped": wantStopped} {
		t.Run(image+" by runc", func(t *testing.T) {
			// With ctr, which unpacks the image for a snapshotter that does not have it yet.
			sameTree(t, want, must(t, s.Ctr(ctx, "run", "--rm", "--runtime", "io.containerd.runc.v2", "--snapshotter", "overlayfs",
				"docker.io/library/"+image, name(t), "/probe", "list")))
		})
		t.Run(image, func(t *testing.T) {
			sameTree(t, want, must(t, s.NerdctlRun(ctx, "--rm", image, "/probe", "list")))
		})
	}
}

// rootTime is the time of the root directory, which a layer does not say: it is that
// of the container's own start.
var rootTime = regexp.MustCompile(`(?m)^("\." .*mtime=)\S+`)

// sameTree compares two lists of files.
func sameTree(t *testing.T, want, got string) {
	t.Helper()
	want, got = rootTime.ReplaceAllString(want, "${1}any"), rootTime.ReplaceAllString(got, "${1}any")
	w, g := strings.Split(strings.TrimSpace(want), "\n"), strings.Split(strings.TrimSpace(got), "\n")
	if len(w) < 500 {
		t.Errorf("only %d files", len(w))
	}
	diff := func(sign string, a, b []string) {
		n := 0
		for _, l := range a {
			if _, found := slices.BinarySearch(b, l); !found {
				if n++; n > 20 {
					t.Errorf("%s and more", sign)
					return
				}
				t.Errorf("%s %s", sign, l)
			}
		}
	}
	slices.Sort(w)
	slices.Sort(g)
	diff("lost: ", w, g)
	diff("added:", g, w)
}
