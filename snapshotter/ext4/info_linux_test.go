package ext4

import (
	"archive/tar"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestInfoAgreesWithDumpe2fs compares Info with what e2fsprogs says of images
// of ours and of mke2fs's.
func TestInfoAgreesWithDumpe2fs(t *testing.T) {
	mke2fs := func(args ...string) func(*testing.T) string {
		return func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "image")
			args := append(append([]string{"-q", "-F"}, args...), path, "64m")
			if out, err := exec.Command("mke2fs", args...).CombinedOutput(); err != nil {
				t.Fatalf("mke2fs %v: %v\n%s", args, err, out)
			}
			return path
		}
	}
	tests := []struct {
		name string
		make func(t *testing.T) string
	}{
		{"a layer", func(t *testing.T) string {
			path, _ := convert(t, makeTar(t, file{Header: tar.Header{Name: "f"}, body: strings.Repeat("x", 100_000)}))
			return path
		}},
		{"an empty image", func(t *testing.T) string {
			f, err := os.Create(filepath.Join(t.TempDir(), "image"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := CreateEmpty(f, 1<<30, EmptyOptions{}); err != nil {
				t.Fatal(err)
			}
			return f.Name()
		}},
		{"mke2fs", mke2fs("-t", "ext4")},
		{"mke2fs with rare features", mke2fs("-t", "ext4", "-b", "1024", "-O", "ea_inode,large_dir,project,quota,verity,mmp,^metadata_csum")},
		{"mke2fs ext2", mke2fs("-t", "ext2")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := tt.make(t)
			want := dumpe2fs(t, path)
			i := openImage(t, path).Info()
			for name, got := range map[string]string{
				"Filesystem UUID":     fmt.Sprintf("%x-%x-%x-%x-%x", i.UUID[:4], i.UUID[4:6], i.UUID[6:8], i.UUID[8:10], i.UUID[10:]),
				"Filesystem features": strings.Join(i.Features, " "),
				"Block size":          fmt.Sprint(i.BlockSize),
				"Block count":         fmt.Sprint(i.Blocks),
				"Free blocks":         fmt.Sprint(i.FreeBlocks),
				"Inode count":         fmt.Sprint(i.Inodes),
				"Free inodes":         fmt.Sprint(i.FreeInodes),
			} {
				if got != want[name] {
					t.Errorf("%s: got %q, dumpe2fs says %q", name, got, want[name])
				}
			}
		})
	}
}

func dumpe2fs(t *testing.T, path string) map[string]string {
	t.Helper()
	out, err := exec.Command("dumpe2fs", "-h", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimSpace(value)
	}
	return fields
}

func TestFeaturesWithoutAName(t *testing.T) {
	got := appendFeatures(nil, 'R', 1<<31|0x100|roCompatLargeFile, roCompatNames)
	if want := []string{"large_file", "quota", "FEATURE_R31"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
