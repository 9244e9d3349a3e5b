package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/applevm/applevm/internal/tartest"
	"github.com/applevm/applevm/snapshotter/ext4"
)

// fsck runs e2fsck on an image and fails the test on any complaint.
func fsck(t *testing.T, image string) {
	t.Helper()
	if out, err := exec.Command("e2fsck", "-fn", image).CombinedOutput(); err != nil {
		t.Errorf("e2fsck -fn %s: %v\n%s", image, err, out)
	}
}

// write makes a file in a directory of its own.
func write(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// names lists a directory.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func readImage(t *testing.T, image string) *ext4.FS {
	t.Helper()
	b, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	fsys, err := ext4.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return fsys
}

func TestConvert(t *testing.T) {
	plain := tartest.Tar(t, tartest.Dir("etc"), tartest.File("etc/passwd", "root:x:0:0"), tartest.File("big", strings.Repeat("data", 1<<20)))
	diffID := digest.FromBytes(plain).String() + "\n"
	tests := []struct {
		name string // says nothing of the compression that is true
		blob []byte
	}{
		{"layer.tar", plain},
		{"layer.tar.zst", tartest.Gzip(t, plain)},
		{"layer.tar.gz", tartest.Zstd(t, plain)},
		{"two members", append(tartest.Gzip(t, plain[:1000]), tartest.Gzip(t, plain[1000:])...)},
		{"empty", tartest.Tar(t)},
	}
	for _, tt := range tests {
		for _, stdin := range []bool{false, true} {
			want := diffID
			if tt.name == "empty" {
				want = digest.FromBytes(tt.blob).String() + "\n"
			}
			layer, in := write(t, tt.name, tt.blob), io.Reader(strings.NewReader(""))
			if stdin {
				layer, in = "-", bytes.NewReader(tt.blob)
			}
			image := filepath.Join(t.TempDir(), "out.ext4")
			var out strings.Builder
			if err := run(t.Context(), []string{"convert", layer, image}, in, &out); err != nil {
				t.Errorf("%s: %v", tt.name, err)
				continue
			}
			if out.String() != want {
				t.Errorf("%s: printed %q, want %q", tt.name, out.String(), want)
			}
			fsck(t, image)
			if got := names(t, filepath.Dir(image)); len(got) != 1 {
				t.Errorf("%s: left beside the image: %q", tt.name, got)
			}
			if tt.name == "empty" {
				continue
			}
			if b, err := readImage(t, image).ReadFile("root/etc/passwd"); err != nil || string(b) != "root:x:0:0" {
				t.Errorf("%s: etc/passwd is %q, %v", tt.name, b, err)
			}
		}
	}
}

// TestConvertRefuses checks the line of error, and that nothing is left.
func TestConvertRefuses(t *testing.T) {
	plain := tartest.Tar(t, tartest.File("f", strings.Repeat("data", 10_000)))
	gz, zst := tartest.Gzip(t, plain), tartest.Zstd(t, plain)
	damaged := bytes.Clone(gz)
	damaged[len(damaged)-5] ^= 1
	damagedZst := bytes.Clone(zst)
	damagedZst[len(damagedZst)-1] ^= 1 // the checksum is the last thing in a frame
	tests := []struct {
		name string
		blob []byte
		want string
	}{
		{"escape.tar", tartest.Tar(t, tartest.File("../x", "")), `".."`},
		{"not a tar", bytes.Repeat([]byte("junk"), 1000), "damaged"},
		{"cut.tar", plain[:5000], "truncated"},
		{"cut.tar.gz", gz[:len(gz)/2], "truncated"},
		{"header.tar.gz", gz[:5], "truncated"},
		{"cut.tar.zst", zst[:len(zst)/2], "truncated"},
		{"damaged.tar.gz", damaged, "checksum"},
		{"damaged.tar.zst", damagedZst, "CRC"},
		{"trailing.tar.gz", append(bytes.Clone(gz), "rubbish"...), ""},
		{"line\nend.tar", tartest.Tar(t, tartest.File("../x", "")), `line\nend.tar`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			layer := write(t, tt.name, tt.blob)
			to := t.TempDir()
			out, err := output(t, "convert", layer, filepath.Join(to, "out.ext4"))
			name := strings.ReplaceAll(layer, "\n", `\n`)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), name) || out != "" {
				t.Errorf("got %v and the output %q, want an error with %q and the layer's name", err, out, tt.want)
			}
			if left := names(t, to); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
}

func TestConvertNeverOverwrites(t *testing.T) {
	layer := write(t, "layer.tar", tartest.Tar(t, tartest.File("f", "x")))
	dir := t.TempDir()
	exists, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.WriteFile(exists, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", link); err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{exists, link, dir} {
		if _, err := output(t, "convert", layer, out); err == nil || !strings.Contains(err.Error(), out+" exists already") {
			t.Errorf("convert to %s: %v", out, err)
		}
	}
	if b, err := os.ReadFile(exists); err != nil || string(b) != "mine" {
		t.Errorf("the file was changed: %q, %v", b, err)
	}
	if got := names(t, dir); len(got) != 2 {
		t.Errorf("left behind: %q", got)
	}
	for _, args := range [][]string{{layer, dir + "/no/such"}, {dir + "/none.tar", dir + "/out"}, {dir, dir + "/out"}} {
		if _, err := output(t, append([]string{"convert"}, args...)...); err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("convert %q: %v", args, err)
		}
	}
}

// TestConvertCanBeInterrupted ends a conversion whose input never ends.
func TestConvertCanBeInterrupted(t *testing.T) {
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	to := t.TempDir()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"convert", "-", filepath.Join(to, "out")}, in, io.Discard)
	}()
	if _, err := w.Write(tartest.Tar(t, tartest.File("f", "x"))[:700]); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "standard input") {
		t.Errorf("got %v", err)
	}
	if left := names(t, to); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}
