package kmod

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// section is one section of a module that elfFile makes.
type section struct {
	name  string
	typ   elf.SectionType
	flags elf.SectionFlag
	info  uint32
	align uint64
	data  string
}

// elfFile makes a relocatable ELF file as a kernel module is one.
func elfFile(sections ...section) []byte {
	var b bytes.Buffer
	write := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err) // not for fixed-size values into memory
		}
	}
	sections = append([]section{{}}, sections...)
	sections = append(sections, section{name: ".shstrtab", typ: elf.SHT_STRTAB})
	names := "\x00"
	headers := make([]elf.Section64, len(sections))
	for i, s := range sections {
		if s.name != "" {
			headers[i].Name = uint32(len(names))
			names += s.name + "\x00"
		}
	}
	sections[len(sections)-1].data = names
	body := make([]byte, ehdrSize)
	for i, s := range sections {
		if s.typ == elf.SHT_NULL {
			continue
		}
		body = pad(body, s.align)
		h := &headers[i]
		h.Type, h.Flags, h.Info, h.Addralign = uint32(s.typ), uint64(s.flags), s.info, s.align
		h.Off, h.Size = uint64(len(body)), uint64(len(s.data))
		body = append(body, s.data...)
	}
	h := elf.Header64{
		Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1,
		Shoff: uint64(len(body)), Ehsize: ehdrSize, Shentsize: shdrSize,
		Shnum: uint16(len(sections)), Shstrndx: uint16(len(sections) - 1),
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	write(h)
	copy(body, b.Bytes())
	b.Reset()
	write(headers)
	return append(body, b.Bytes()...)
}

func modinfo(depends string) section {
	return section{name: ".modinfo", typ: elf.SHT_PROGBITS, flags: elf.SHF_ALLOC, data: "license=GPL\x00depends=" + depends + "\x00name=x\x00"}
}

// signed appends a signature of n bytes.
func signed(b []byte, n uint32) []byte {
	b = append(bytes.Clone(b), make([]byte, n+signatureInfo-4)...)
	b = binary.BigEndian.AppendUint32(b, n)
	return append(b, signatureMagic...)
}

func tree(modules map[string]string, builtin string) fstest.MapFS {
	fsys := fstest.MapFS{"modules.builtin": {Data: []byte(builtin)}}
	for file, depends := range modules {
		fsys[file] = &fstest.MapFile{Data: elfFile(modinfo(depends))}
	}
	return fsys
}

func TestResolve(t *testing.T) {
	fsys := tree(map[string]string{
		"kernel/a/virtio_ring.ko": "",
		"kernel/a/virtio.ko":      "virtio_ring",
		"kernel/b/virtio-rng.ko":  "virtio,virtio_ring",
		"kernel/c/net.ko":         "virtio,failover,crc",
		"kernel/c/failover.ko":    "",
		"kernel/d/unused.ko":      "",
	}, "kernel/fs/ext4/ext4.ko\nkernel/lib/crc.ko\n")
	mods, err := Resolve(fsys, []string{"virtio-rng", "ext4", "net", "virtio"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range mods {
		names = append(names, m.Name)
		if !bytes.Equal(m.Data, fsys[m.Path].Data) {
			t.Errorf("%s: not the content of %s", m.Name, m.Path)
		}
	}
	want := []string{"virtio_ring", "virtio", "virtio_rng", "failover", "net"}
	if !slices.Equal(names, want) {
		t.Errorf("got %v, want %v", names, want)
	}
}

func TestResolveRefuses(t *testing.T) {
	tests := []struct {
		name string
		fs   fstest.MapFS
		says []string
	}{
		{"no such module", tree(nil, ""), []string{"no module a", "the guest"}},
		{"no such dependency", tree(map[string]string{"a.ko": "b"}, ""), []string{"no module b", "needed by a"}},
		{"a circle", tree(map[string]string{"a.ko": "b", "b.ko": "a"}, ""), []string{"a depends on itself", "b"}},
		{"no list of built-in modules", fstest.MapFS{"a.ko": {Data: elfFile(modinfo(""))}}, []string{"modules.builtin"}},
		{"no ELF file", fstest.MapFS{"modules.builtin": {}, "a.ko": {Data: []byte("text")}}, []string{"module a"}},
		{"no modinfo", fstest.MapFS{"modules.builtin": {}, "a.ko": {Data: elfFile()}}, []string{"module a", ".modinfo"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Resolve(tt.fs, []string{"a"})
			if err == nil {
				t.Fatal("no error")
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("error %q does not say %q", err, s)
				}
			}
		})
	}
}

//nolint:misspell // ELF's names
func fullModule() []byte {
	return elfFile(
		section{name: ".text", typ: elf.SHT_PROGBITS, flags: elf.SHF_ALLOC | elf.SHF_EXECINSTR, align: 16, data: "\x90\x90\xc3"},
		section{name: ".rela.text", typ: elf.SHT_RELA, info: 1, align: 8, data: strings.Repeat("r", 24)},
		section{name: ".BTF", typ: elf.SHT_PROGBITS, align: 1, data: strings.Repeat("type", 1000)},
		section{name: ".rela.BTF", typ: elf.SHT_RELA, info: 3, align: 8, data: strings.Repeat("r", 24)},
		section{name: ".comment", typ: elf.SHT_PROGBITS, flags: elf.SHF_MERGE | elf.SHF_STRINGS, align: 1, data: "GCC"},
		section{name: ".bss", typ: elf.SHT_NOBITS, flags: elf.SHF_ALLOC | elf.SHF_WRITE, align: 32},
		modinfo("virtio"),
		section{name: ".symtab", typ: elf.SHT_SYMTAB, info: 1, align: 8, data: strings.Repeat("\x00", 24)},
		section{name: ".strtab", typ: elf.SHT_STRTAB, align: 1, data: "\x00sym\x00"},
	)
}

func TestStrip(t *testing.T) {
	in := fullModule()
	for _, tt := range []struct {
		name string
		data []byte
	}{{"signed", signed(in, 400)}, {"unsigned", in}} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := Strip(tt.data)
			if err != nil {
				t.Fatal(err)
			}
			if len(out) > len(in)-4000 {
				t.Errorf("%d bytes of %d are left", len(out), len(in))
			}
			before, err := elf.NewFile(bytes.NewReader(in))
			if err != nil {
				t.Fatal(err)
			}
			after, err := elf.NewFile(bytes.NewReader(out))
			if err != nil {
				t.Fatal(err)
			}
			if len(after.Sections) != len(before.Sections) {
				t.Fatalf("%d sections of %d", len(after.Sections), len(before.Sections))
			}
			dropped := []string{".BTF", ".rela.BTF", ".comment"} //nolint:misspell // ELF's name
			for i, s := range before.Sections {
				got := after.Sections[i]
				if slices.Contains(dropped, s.Name) {
					if got.Type != elf.SHT_NULL || got.Size != 0 {
						t.Errorf("%s is still there", s.Name)
					}
					continue
				}
				want, _ := s.Data()
				have, err := got.Data()
				if err != nil || got.Name != s.Name || got.Type != s.Type || got.Flags != s.Flags || got.Info != s.Info || !bytes.Equal(have, want) {
					t.Errorf("section %s became %+v, error %v", s.Name, got.SectionHeader, err)
				}
				if s.Addralign > 1 && got.Offset%s.Addralign != 0 {
					t.Errorf("%s at %d is not aligned to %d", s.Name, got.Offset, s.Addralign)
				}
			}
			if again, err := Strip(out); err != nil || !bytes.Equal(again, out) {
				t.Errorf("a second time changes it, error %v", err)
			}
		})
	}
}

func TestStripRefuses(t *testing.T) {
	edit := func(off int, b ...byte) []byte { d := fullModule(); copy(d[off:], b); return d }
	tests := []struct {
		name string
		data []byte
	}{
		{"signature without length", []byte(signatureMagic)},
		{"signature longer than the file", append([]byte("12345678\xff\xff\xff\xff"), signatureMagic...)},
		{"a program", edit(16, byte(elf.ET_EXEC))},
		{"32 bits", edit(elf.EI_CLASS, byte(elf.ELFCLASS32))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Strip(tt.data); err == nil {
				t.Error("no error")
			}
		})
	}
	if _, err := unsign([]byte(signatureMagic)); !errors.Is(err, errModule) {
		t.Errorf("error %v", err)
	}
}

func FuzzStrip(f *testing.F) {
	f.Add(fullModule())
	f.Add(signed(fullModule(), 10))
	f.Fuzz(func(t *testing.T, b []byte) {
		if deps, err := depends(b); err != nil && deps != nil {
			t.Errorf("%q beside error %v", deps, err)
		}
		if out, err := Strip(b); err == nil && len(out) > 3*len(b)+2*maxAlign {
			t.Errorf("%d bytes out of %d", len(out), len(b))
		}
	})
}
