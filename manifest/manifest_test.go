package manifest

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestWriteThenFind(t *testing.T) {
	dir := t.TempDir()
	want := Manifest{
		Version:  Version,
		Layers:   []Layer{{DiffID: "sha256:aa", Path: "/l/aa.ext4", FSType: "ext4"}},
		Writable: &Writable{Path: "/s/rw.img", FSType: "ext4"},
	}
	if err := Write(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := Find(filepath.Join(dir, FacadeDir) + "/")
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, "*")); len(names) != 1 {
		t.Errorf("files left beside the manifest: %v", names)
	}
}

func TestFindRefusesOtherSources(t *testing.T) {
	dir := t.TempDir()
	if err := Write(dir, Manifest{}); err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{dir, filepath.Join(dir, "rootfs"), "/", "", filepath.Join(t.TempDir(), FacadeDir)} {
		if _, err := Find(source); !errors.Is(err, ErrNoManifest) {
			t.Errorf("Find(%q) = %v, want ErrNoManifest", source, err)
		}
	}
}

func TestReadRefusesBadManifests(t *testing.T) {
	tests := []struct{ name, content, want string }{
		{"not JSON", "{", "unexpected end"},
		{"future version", `{"version":2}`, "version 2 is not supported"},
		{"relative layer", `{"version":1,"layers":[{"path":"a","fsType":"ext4"}]}`, "layer 0"},
		{"layer without type", `{"version":1,"layers":[{"path":"/a"}]}`, "layer 0"},
		{"relative writable", `{"version":1,"writable":{"path":"a","fsType":"ext4"}}`, "writable image"},
		{"too large", strings.Repeat(" ", maxSize+1), "more than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, FileName), []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Read(dir); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}
