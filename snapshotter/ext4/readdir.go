package ext4

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// dirList is a directory's contents without "." and "..", sorted by name.
type dirList struct {
	ino     uint32
	entries []dirent
}

func (l *dirList) find(name string) (dirent, bool) {
	i, ok := slices.BinarySearchFunc(l.entries, name, func(e dirent, name string) int { return strings.Compare(e.name, name) })
	if !ok {
		return dirent{}, false
	}
	return l.entries[i], true
}

// dirCache keeps directories that were read, up to a number of entries, and
// besides one that is larger: small directories on the way to its files must not
// push it out, or each look at one of them would read it anew.
type dirCache struct {
	lists   map[uint32]*dirList
	entries int
	large   *dirList
}

const dirCacheEntries = 1 << 16

func (c *dirCache) get(ino uint32) *dirList {
	if c.large != nil && c.large.ino == ino {
		return c.large
	}
	return c.lists[ino]
}

func (c *dirCache) put(l *dirList) {
	if len(l.entries) > dirCacheEntries {
		c.large = l
		return
	}
	if c.lists == nil || c.entries+len(l.entries) > dirCacheEntries {
		c.lists, c.entries = map[uint32]*dirList{}, 0
	}
	c.lists[l.ino] = l
	c.entries += len(l.entries) + 1
}

// maxDirEntries bounds what one directory of a hostile image may take in memory.
const maxDirEntries = 4 << 20

// readDir reads a directory. A hash tree needs no attention: its inner blocks
// look like blocks with one unused entry.
func (f *FS) readDir(n *node) (*dirList, error) {
	f.mu.Lock()
	l := f.dirs.get(n.ino)
	f.mu.Unlock()
	if l != nil {
		return l, nil
	}
	l = &dirList{ino: n.ino}
	b := make([]byte, f.block)
	end := (n.size + uint64(f.block) - 1) / uint64(f.block)
	var budget uint64 // a directory cannot have more blocks than the image
	for logical := uint64(0); logical < end; {
		r, err := f.mapBlock(n, logical)
		if err != nil {
			return nil, err
		}
		r.count = min(r.count, end-logical)
		first := logical
		logical += r.count
		if r.physical == 0 {
			continue
		}
		if budget += r.count; budget > f.blocks {
			return nil, corrupt("directory inode %d has more blocks than the image", n.ino)
		}
		for i := range r.count {
			if err := f.readBlock(b, r.physical+i); err != nil {
				return nil, err
			}
			if f.verify && !dirBlockOK(n, b, first+i) {
				return nil, corrupt("directory inode %d: wrong checksum of its block %d", n.ino, first+i)
			}
			if err := f.parseDirBlock(n, b, l); err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(l.entries, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	for i := 1; i < len(l.entries); i++ {
		if l.entries[i].name == l.entries[i-1].name {
			return nil, corrupt("directory inode %d has the name %q twice", n.ino, l.entries[i].name)
		}
	}
	f.mu.Lock()
	f.dirs.put(l)
	f.mu.Unlock()
	return l, nil
}

// dirBlockOK checks the checksum of a directory's block: in a leaf it stands in
// the tail that looks like an unused entry, in a hash tree's other blocks after
// the room for their entries. The kind cannot be told by the tail alone: the
// kernel leaves an old one behind when it turns a leaf into a root.
func dirBlockOK(n *node, b []byte, logical uint64) bool {
	if n.flags&inodeIndex != 0 {
		switch {
		case logical == 0:
			return dxChecksumOK(n, b, dxRootEntries)
		case le.Uint32(b) == 0 && int(le.Uint16(b[4:])) == len(b)&0xFFFF:
			return dxChecksumOK(n, b, dxNodeEntries)
		}
	}
	end := len(b) - direntTailSize
	t := b[end:]
	return le.Uint32(t) == 0 && le.Uint16(t[4:]) == direntTailSize && t[6] == 0 && t[7] == direntTailType &&
		le.Uint32(t[8:]) == crc32c(n.seed, b[:end])
}

// dxChecksumOK checks an inner block of a hash tree whose entries begin at off.
func dxChecksumOK(n *node, b []byte, off int) bool {
	limit, count := int(le.Uint16(b[off:])), int(le.Uint16(b[off+2:]))
	tail := off + limit*dxEntrySize
	if count > limit || tail+dxTailSize > len(b) {
		return false
	}
	c := crc32c(crc32c(n.seed, b[:off+count*dxEntrySize]), b[tail:tail+4])
	return crc32c(c, make([]byte, 4)) == le.Uint32(b[tail+4:])
}

// parseDirBlock appends the entries of one block to l.
func (f *FS) parseDirBlock(n *node, b []byte, l *dirList) error {
	for off := 0; off < len(b); {
		e := b[off:]
		if len(e) < direntHeaderSize {
			return corrupt("directory inode %d: entry at the end of a block", n.ino)
		}
		ino, size := le.Uint32(e), int(le.Uint16(e[4:]))
		if len(b) == 1<<16 && (size == 0 || size == 1<<16-1) {
			size = 1 << 16 // ext4_rec_len_from_disk
		}
		nameLen, ft := int(e[6]), e[7]
		if f.super.FeatureIncompat&incompatFiletype == 0 {
			ft = ftUnknown // here the byte belongs to the name's length
		}
		if size < direntHeaderSize || size%4 != 0 || size > len(e) || direntHeaderSize+nameLen > size {
			return corrupt("directory inode %d: entry of %d bytes with a name of %d", n.ino, size, nameLen)
		}
		off += size
		if ino == 0 {
			continue
		}
		name := e[direntHeaderSize : direntHeaderSize+nameLen]
		if string(name) == "." || string(name) == ".." {
			continue
		}
		if nameLen == 0 || bytes.ContainsAny(name, "/\x00") || ino > f.super.InodesCount {
			return corrupt("directory inode %d: entry %q, inode %d", n.ino, name, ino)
		}
		if len(l.entries) == maxDirEntries {
			return fmt.Errorf("directory inode %d has more than %d entries: %w", n.ino, maxDirEntries, errdefs.ErrResourceExhausted)
		}
		l.entries = append(l.entries, dirent{string(name), ino, ft})
	}
	return nil
}

// child reads the inode of an entry of directory parent and checks that the
// two agree.
func (f *FS) child(parent uint32, e dirent) (*node, error) {
	n, err := f.inode(e.ino)
	if err != nil {
		return nil, err
	}
	if e.ft != ftUnknown && e.ft != fileType(n.mode) {
		return nil, corrupt("directory inode %d: entry %q is not of the type of inode %d", parent, e.name, e.ino)
	}
	if n.mode&modeFmt != modeDir {
		return n, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	me := dirOwner{parent, e.name}
	if first, ok := f.owners[e.ino]; ok && first != me {
		return nil, corrupt("directory inode %d has two names, one in directory inode %d", e.ino, parent)
	}
	f.owners[e.ino] = me
	return n, nil
}
