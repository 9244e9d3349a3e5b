package build

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/applevm/applevm/guest/kernel"
)

func TestInitramfs(t *testing.T) {
	mods := fstest.MapFS{}
	for _, name := range []string{"00-first.ko", "01-second.ko", "later/00-third.ko"} {
		mods[name] = &fstest.MapFile{Data: []byte(name)}
	}
	var out, again bytes.Buffer
	for _, w := range []io.Writer{&out, &again} {
		if err := writeInitramfs(w, []byte("init"), mods); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(out.Bytes(), again.Bytes()) {
		t.Error("the same content gives different bytes")
	}
	recs, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(out.Bytes())))
	if err != nil {
		t.Fatal(err)
	}
	const typ, dirType, charType, fileType = 0o170000, 0o040000, 0o020000, 0o100000
	want := map[string]struct {
		mode    uint64
		content string
	}{
		"init":                             {fileType | 0o755, "init"},
		"dev/console":                      {charType | 0o600, ""},
		"dev/null":                         {charType | 0o666, ""},
		"proc":                             {dirType | 0o555, ""},
		"tmp":                              {dirType | 0o1777, ""},
		"lib/modules/applevm":              {dirType | 0o755, ""},
		"lib/modules/applevm/00-first.ko":  {fileType | 0o644, "00-first.ko"},
		"lib/modules/applevm/01-second.ko": {fileType | 0o644, "01-second.ko"},

		"lib/modules/applevm/later":             {dirType | 0o755, ""},
		"lib/modules/applevm/later/00-third.ko": {fileType | 0o644, "later/00-third.ko"},
	}
	made := map[string]bool{".": true}
	for _, r := range recs {
		// The kernel makes no parents: a file without one is lost.
		if !made[filepath.Dir(r.Name)] {
			t.Errorf("%s comes before its directory", r.Name)
		}
		if r.Mode&typ == dirType {
			made[r.Name] = true
		}
		w, ok := want[r.Name]
		if !ok {
			continue
		}
		delete(want, r.Name)
		if r.Mode != w.mode || r.UID != 0 || r.GID != 0 || r.MTime != 0 {
			t.Errorf("%s: %+v", r.Name, r.Info)
		}
		if w.content != "" {
			b, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
			if err != nil || string(b) != w.content {
				t.Errorf("%s holds %q, error %v", r.Name, b, err)
			}
		}
		if r.Name == "dev/console" && (r.Rmajor != 5 || r.Rminor != 1) {
			t.Errorf("console is device %d:%d", r.Rmajor, r.Rminor)
		}
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

// noNetwork makes a cache and a command path in which nothing can be found.
func noNetwork(t *testing.T) {
	t.Helper()
	t.Setenv("XDG_CACHE_HOME", filepath.Join(t.TempDir(), "[x]"))
	t.Setenv("PATH", t.TempDir())
}

func TestBuildRefuses(t *testing.T) {
	noNetwork(t)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	native, other := "amd64", "arm64"
	if runtime.GOARCH == "arm64" {
		native, other = other, native
	}
	static := staticELF(t, native)
	tests := []struct {
		name string
		spec Spec
		says string
	}{
		{"unknown architecture", Spec{Arch: "mips"}, `"mips"`},
		{"no init", Spec{Arch: native, Init: "/nowhere/init"}, "/nowhere/init"},
		{"init is linked dynamically", Spec{Arch: native, Init: dynamicELF(t, native)}, "statically"},
		{"init is no program", Spec{Arch: native, Init: text}, "no Linux program"},
		{"init for another architecture", Spec{Arch: other, Init: static}, "the image for " + other},
		{"unknown kernel", Spec{Arch: native, Kernel: "bsd", Init: static}, `"bsd"`},
		{"own kernel was not built", Spec{Arch: native, Kernel: KindOwn, Init: static}, "make kernel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.spec.Out = filepath.Join(t.TempDir(), "out")
			_, err := Build(t.Context(), tt.spec)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error %v does not say %q", err, tt.says)
			}
			if _, err := os.Stat(tt.spec.Out); err == nil {
				t.Error("something was written")
			}
		})
	}
}

// staticELF writes a program's file header, which is all that is looked at.
func staticELF(t *testing.T, arch string) string { return writeELF(t, arch) }

// dynamicELF writes one that asks for a dynamic linker.
func dynamicELF(t *testing.T, arch string) string {
	return writeELF(t, arch, elf.Prog64{Type: uint32(elf.PT_INTERP)})
}

func writeELF(t *testing.T, arch string, progs ...elf.Prog64) string {
	t.Helper()
	h := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(machines[arch]), Version: 1,
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: uint16(len(progs)), Shentsize: 64,
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	var b bytes.Buffer
	if err := errors.Join(binary.Write(&b, binary.LittleEndian, h), binary.Write(&b, binary.LittleEndian, progs)); err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(p, b.Bytes(), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAutoTakesOwnKernel(t *testing.T) {
	noNetwork(t)
	options, err := kernel.Options("arm64")
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(os.Getenv("XDG_CACHE_HOME"), "applevm")
	// One that is being built does not count, one of other options neither.
	for _, name := range []string{ownName("arm64", options) + "1.part", ownName("arm64", options+"\n") + "1", ownName("arm64", options) + "1"} {
		dir := filepath.Join(base, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := (Kernel{Kind: KindOwn, Release: name, VirtioMMIO: true}).write(dir); err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range []string{KindAuto, KindOwn} {
		k, err := FindKernel(t.Context(), "arm64", kind)
		if err != nil {
			t.Fatal(err)
		}
		if k.Release != ownName("arm64", options)+"1" || !k.VirtioMMIO || !strings.HasPrefix(k.Path(), base) {
			t.Errorf("%s: got %+v", kind, k)
		}
	}
}

func TestCheckImage(t *testing.T) {
	good := make([]byte, 64)
	copy(good[56:], "ARM\x64")
	if err := checkImage(good); err != nil {
		t.Error(err)
	}
	for name, b := range map[string][]byte{
		"short":      good[:60],
		"compressed": append([]byte("\x1f\x8b"), make([]byte, 100)...),
	} {
		if err := checkImage(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestKernelBuildSaysWhatIsMissing(t *testing.T) {
	noNetwork(t)
	_, err := BuildKernel(t.Context(), "arm64", 1, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "make deps") {
		t.Errorf("error %v does not say what to do", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := BuildKernel(ctx, "mips", 1, io.Discard); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("error %v is not about the architecture", err)
	}
}
