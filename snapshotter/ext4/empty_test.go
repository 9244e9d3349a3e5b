package ext4

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func empty(t testing.TB, size int64, opts EmptyOptions) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "empty.ext4")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := CreateEmpty(f, size, opts); err != nil {
		t.Fatal(err)
	}
	return path
}

func allocated(t testing.TB, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestCreateEmptyIsCleanAndSparse(t *testing.T) {
	tests := []struct {
		name      string
		size, max int64
	}{
		{"smallest", MinEmptySize, 256 << 10},
		{"1 GiB", 1 << 30, 256 << 10},
		{"odd size", 10<<30 + 12345, 256 << 10},
		{"last group too small", 8<<30 + 1<<20, 256 << 10},
		{"64 GiB", 64 << 30, 1 << 20},
		{"1 TiB", 1 << 40, 2 << 20},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := empty(t, tt.size, EmptyOptions{UUID: [16]byte{1}, Label: "rw"})
			if n := allocated(t, path); n > tt.max {
				t.Errorf("%d bytes allocated, more than %d", n, tt.max)
			}
			fsck(t, path)
		})
	}
}
