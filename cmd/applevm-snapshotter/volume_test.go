package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestVolume(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "v.img")
	var out bytes.Buffer
	if err := run(t.Context(), []string{"volume", "-label", "data", path, "1G"}, nil, &out); err != nil || out.Len() > 0 {
		t.Fatalf("%v, %q", err, &out)
	}
	st, err := os.Stat(path)
	if err != nil || st.Size() != 1<<30 || st.Mode().Perm() != 0o600 || allocated(st) > 4<<20 {
		t.Errorf("%v, %v", st, err)
	}
	if b, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil || !strings.HasPrefix(string(b), "e2fsck") || !strings.Contains(string(b), "data:") {
		t.Errorf("%v: %s", err, b)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{path, "1G"}, "file exists"},
		{[]string{filepath.Join(dir, "w"), "lots"}, `the size "lots" is none like 512M or 10G`},
		{[]string{filepath.Join(dir, "w"), "1K"}, "an ext4 image of 1024 bytes cannot be made"},
		{[]string{filepath.Join(dir, "nosuch", "w"), "1G"}, "no such file or directory"},
		{[]string{"-label", strings.Repeat("x", 17), filepath.Join(dir, "w"), "1G"}, "longer than 16 bytes"},
	} {
		err := run(t.Context(), append([]string{"volume"}, tt.args...), nil, &out)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.args, err, tt.want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
		t.Errorf("left behind: %q", left)
	}
}
