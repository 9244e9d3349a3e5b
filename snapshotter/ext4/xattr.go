package ext4

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// xattrPrefixes are the namespaces that ext4 has numbers for. The ACL names are
// whole: nothing follows them.
var xattrPrefixes = []struct {
	prefix string
	index  uint8
}{
	{"user.", xattrUser},
	{"system.posix_acl_access", xattrACLAccess},
	{"system.posix_acl_default", xattrACLDefault},
	{"trusted.", xattrTrusted},
	{"security.", xattrSecurity},
	{"system.", xattrSystem},
	{"system.richacl", 8},
}

// Numbers of attribute namespaces (EXT4_XATTR_INDEX_*).
const (
	xattrUser       = 1
	xattrACLAccess  = 2
	xattrACLDefault = 3
	xattrTrusted    = 4
	xattrSecurity   = 6
	xattrSystem     = 7
)

// xattr is one extended attribute in ext4's form.
type xattr struct {
	index uint8
	name  string // without its namespace
	value []byte
}

func (x *xattr) entrySize() int { return xattrEntrySize + align4(len(x.name)) }

func (x *xattr) size() int { return x.entrySize() + align4(len(x.value)) }

func align4(n int) int { return (n + 3) &^ 3 }

// xattrSet is what one inode or several equal ones have, split into what fits
// the inode and what goes to a block.
type xattrSet struct {
	inline []xattr
	block  []xattr
}

// newXattrSet splits attrs in the order in which the kernel's binary search
// wants them: by namespace, length of name, name.
func newXattrSet(attrs []xattr) (*xattrSet, error) {
	slices.SortFunc(attrs, func(a, b xattr) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), strings.Compare(a.name, b.name))
	})
	s := &xattrSet{}
	// Four bytes of zero end a list of entries.
	inlineFree := inodeSize - inodeXattrOff - xattrIbodyHeader - 4
	blockFree := blockSize - xattrHeaderSize - 4
	for _, x := range attrs {
		n := x.size()
		switch {
		case n <= inlineFree:
			inlineFree -= n
			s.inline = append(s.inline, x)
		case n <= blockFree:
			blockFree -= n
			s.block = append(s.block, x)
		default:
			return nil, fmt.Errorf("extended attributes of more than a block of %d bytes are not supported (one too many: %s, %d bytes): %w",
				blockSize, x.fullName(), len(x.value), errdefs.ErrInvalidArgument)
		}
	}
	return s, nil
}

// fullName returns the attribute's name with its namespace.
func (x *xattr) fullName() string {
	for _, p := range xattrPrefixes {
		if p.index == x.index {
			return p.prefix + x.name
		}
	}
	return fmt.Sprintf("%d.%s", x.index, x.name)
}

// splitXattrName finds the number of a name's namespace. It is false for names
// that ext4 cannot hold.
func splitXattrName(full string) (index uint8, name string, ok bool) {
	switch full {
	case "system.posix_acl_access":
		return xattrACLAccess, "", true
	case "system.posix_acl_default":
		return xattrACLDefault, "", true
	}
	for _, i := range []uint8{xattrUser, xattrTrusted, xattrSecurity} {
		for _, p := range xattrPrefixes {
			if p.index == i && strings.HasPrefix(full, p.prefix) {
				return i, full[len(p.prefix):], true
			}
		}
	}
	return 0, "", false
}

// marshalInline writes the attributes that stand in the inode. b is the part of
// the inode after its fields.
func (s *xattrSet) marshalInline(b []byte) {
	if len(s.inline) == 0 {
		return
	}
	le.PutUint32(b, xattrMagic)
	// Offsets of values count from the first entry. The hash stays zero: the
	// kernel and e2fsck look at it only in blocks.
	putXattrs(b[xattrIbodyHeader:], 0, s.inline, false)
}

// marshalBlock writes the attribute block that refs inodes share, without its
// checksum.
func (s *xattrSet) marshalBlock(b []byte, refs uint32) {
	le.PutUint32(b[0:], xattrMagic)
	le.PutUint32(b[4:], refs)
	le.PutUint32(b[8:], 1) // h_blocks
	le.PutUint32(b[12:], putXattrs(b, xattrHeaderSize, s.block, true))
}

// putXattrs writes entries into b from offset off on and values from b's end
// backwards, and returns the block's hash.
func putXattrs(b []byte, off int, attrs []xattr, hashed bool) uint32 {
	var sum uint32
	zero := false
	end := len(b)
	for _, x := range attrs {
		e := b[off:]
		e[0] = byte(len(x.name))
		e[1] = x.index
		if len(x.value) > 0 {
			end -= align4(len(x.value))
			copy(b[end:], x.value)
			le.PutUint16(e[2:], uint16(end))
		}
		le.PutUint32(e[8:], uint32(len(x.value)))
		if hashed {
			h := x.hash()
			le.PutUint32(e[12:], h)
			zero = zero || h == 0
			sum = sum<<16 ^ sum>>16 ^ h
		}
		copy(e[xattrEntrySize:], x.name)
		off += x.entrySize()
	}
	if zero {
		return 0
	}
	return sum
}

// hash is the kernel's ext4_xattr_hash_entry, with unsigned characters.
func (x *xattr) hash() uint32 {
	var h uint32
	for i := 0; i < len(x.name); i++ {
		h = h<<5 ^ h>>27 ^ uint32(x.name[i])
	}
	for v := x.value; len(v) > 0; v = v[min(4, len(v)):] {
		var word [4]byte
		copy(word[:], v)
		h = h<<16 ^ h>>16 ^ le.Uint32(word[:])
	}
	return h
}

// key identifies equal sets.
func xattrKey(attrs []xattr) string {
	var b []byte
	for _, x := range attrs {
		b = append(b, x.index)
		b = le.AppendUint16(b, uint16(len(x.name)))
		b = append(b, x.name...)
		b = le.AppendUint32(b, uint32(len(x.value)))
		b = append(b, x.value...)
	}
	return string(b)
}
