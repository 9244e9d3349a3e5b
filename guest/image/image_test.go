package image

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const good = `{"arch": "amd64", "kernel": "k", "initrd": "sub/i", "cmdline": ["a", "b=c"], "release": "6.1", "kernel_kind": "own", "virtio_mmio": true}`

// write makes an image's directory; files maps names to contents.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestOpen(t *testing.T) {
	dir := write(t, map[string]string{File: good, "k": "kernel", "sub/i": "initrd"})
	t.Chdir(filepath.Dir(dir))
	img, err := Open(filepath.Base(dir))
	if err != nil {
		t.Fatal(err)
	}
	if img.Kernel != filepath.Join(dir, "k") || img.Initrd != filepath.Join(dir, "sub/i") {
		t.Errorf("paths %s and %s are not those in %s", img.Kernel, img.Initrd, dir)
	}
	if img.Arch != "amd64" || img.Release != "6.1" || img.KernelKind != "own" || !img.VirtioMMIO || !slices.Equal(img.Cmdline, []string{"a", "b=c"}) {
		t.Errorf("got %+v", img)
	}
}

func TestOpenRefuses(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		is    error
		says  string
	}{
		{"no image", nil, fs.ErrNotExist, "make guest"},
		{"no JSON", map[string]string{File: "{"}, ErrInvalid, File},
		{"unknown architecture", map[string]string{File: strings.ReplaceAll(good, "amd64", "mips")}, ErrInvalid, "mips"},
		{"no kernel", map[string]string{File: good, "sub/i": "x"}, fs.ErrNotExist, "lacks its kernel"},
		{"no initrd", map[string]string{File: good, "k": "x"}, fs.ErrNotExist, "lacks its initrd"},
		{"empty kernel", map[string]string{File: good, "k": "", "sub/i": "x"}, nil, "empty"},
		{"kernel is a directory", map[string]string{File: good, "k/f": "x", "sub/i": "x"}, nil, "no regular file"},
		{"kernel is not named", map[string]string{File: `{"arch": "arm64", "initrd": "i"}`, "i": "x"}, ErrInvalid, "kernel"},
		{"kernel out of the directory", map[string]string{File: strings.ReplaceAll(good, `"k"`, `"../k"`)}, ErrInvalid, "../k"},
		{"absolute initrd", map[string]string{File: strings.ReplaceAll(good, "sub/i", "/etc/passwd"), "k": "x"}, ErrInvalid, "/etc/passwd"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := write(t, tt.files)
			_, err := Open(dir)
			if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), dir) {
				t.Errorf("error %v does not say %q and %s", err, tt.says, dir)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("error %v is not %v", err, tt.is)
			}
		})
	}
}

func TestOpenForAnotherArchitecture(t *testing.T) {
	dir := write(t, map[string]string{File: good, "k": "kernel", "sub/i": "initrd"})
	if _, err := OpenFor(dir, "amd64"); err != nil {
		t.Error(err)
	}
	_, err := OpenFor(dir, "arm64")
	if err == nil || !strings.Contains(err.Error(), "for amd64") || !strings.Contains(err.Error(), "-arch arm64") {
		t.Errorf("error %v does not say what the image is for and what to do", err)
	}
}
