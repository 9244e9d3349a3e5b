package kmod

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
)

// signatureMagic ends a signed module (include/linux/module_signature.h).
const signatureMagic = "~Module signature appended~\n"

// signatureInfo is the length of struct module_signature, which precedes the
// magic and whose last field is the signature's length, 32 bits, big endian.
const signatureInfo = 12

var errModule = errors.New("not a 64-bit little-endian kernel module")

// Strip returns the module without its signature, debugging data and type
// information. Under emulation, checking 17 signatures takes as long as all
// else that loading does; they prove nothing here, because whoever could change
// the modules could change the kernel beside them. The kernel loads unsigned
// modules unless it runs in lockdown mode.
func Strip(data []byte) ([]byte, error) {
	data, err := unsign(data)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	if f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB || f.Type != elf.ET_REL {
		return nil, errModule
	}
	return dropSections(data, func(i int) bool {
		s := f.Sections[i]
		switch {
		case s.Flags&elf.SHF_ALLOC != 0, s.Type == elf.SHT_SYMTAB, s.Type == elf.SHT_STRTAB:
			return false
		case s.Type == elf.SHT_RELA || s.Type == elf.SHT_REL: //nolint:misspell // ELF's name
			// Relocations go with what they relocate.
			return int(s.Info) < len(f.Sections) && f.Sections[s.Info].Flags&elf.SHF_ALLOC == 0
		default:
			return true
		}
	})
}

func unsign(data []byte) ([]byte, error) {
	body, ok := bytes.CutSuffix(data, []byte(signatureMagic))
	if !ok {
		return data, nil
	}
	if len(body) < signatureInfo {
		return nil, fmt.Errorf("%w: signature cut short", errModule)
	}
	n := uint64(binary.BigEndian.Uint32(body[len(body)-4:])) + signatureInfo
	if n > uint64(len(body)) {
		return nil, fmt.Errorf("%w: signature of %d bytes in a file of %d", errModule, n, len(body))
	}
	return body[:uint64(len(body))-n], nil
}

// Offsets in the ELF64 file header and in section headers (gABI, chapter 4).
const (
	ehdrSize    = 64
	ehdrShoff   = 40
	ehdrShentsz = 58
	shdrSize    = 64
	shdrType    = 4
	shdrOffset  = 24
	shdrLen     = 32
	shdrAlign   = 48

	maxAlign = 1 << 16
)

// dropSections moves the sections together and leaves out those that drop
// names. Their headers stay, as SHT_NULL, so that no index changes.
func dropSections(data []byte, drop func(i int) bool) ([]byte, error) {
	le := binary.LittleEndian
	shoff := le.Uint64(data[ehdrShoff:])
	shnum := uint64(le.Uint16(data[ehdrShentsz+2:]))
	if le.Uint16(data[ehdrShentsz:]) != shdrSize || shoff > uint64(len(data)) || shnum*shdrSize > uint64(len(data))-shoff {
		return nil, fmt.Errorf("%w: section headers out of the file", errModule)
	}
	headers := bytes.Clone(data[shoff : shoff+shnum*shdrSize])
	out := bytes.Clone(data[:ehdrSize])
	for i := range int(shnum) {
		h := headers[i*shdrSize : (i+1)*shdrSize]
		switch typ := elf.SectionType(le.Uint32(h[shdrType:])); {
		case typ == elf.SHT_NULL:
			continue
		case drop(i):
			clear(h)
			continue
		case typ == elf.SHT_NOBITS:
			le.PutUint64(h[shdrOffset:], uint64(len(out)))
			continue
		}
		off, size, align := le.Uint64(h[shdrOffset:]), le.Uint64(h[shdrLen:]), le.Uint64(h[shdrAlign:])
		if off > uint64(len(data)) || size > uint64(len(data))-off || align > maxAlign {
			return nil, fmt.Errorf("%w: section %d out of the file", errModule, i)
		}
		out = pad(out, align)
		le.PutUint64(h[shdrOffset:], uint64(len(out)))
		out = append(out, data[off:off+size]...)
		// Sections that do not overlap cannot take more than this.
		if len(out) > 2*len(data)+maxAlign {
			return nil, fmt.Errorf("%w: its sections overlap", errModule)
		}
	}
	out = pad(out, 8)
	le.PutUint64(out[ehdrShoff:], uint64(len(out)))
	return append(out, headers...), nil
}

func pad(b []byte, align uint64) []byte {
	if align > 1 {
		if r := uint64(len(b)) % align; r != 0 {
			b = append(b, make([]byte, align-r)...)
		}
	}
	return b
}
