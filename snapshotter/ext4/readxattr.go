package ext4

// maxXattrValue bounds one attribute's value, as XATTR_SIZE_MAX does in the
// kernel.
const maxXattrValue = 64 << 10

// xattrs reads all extended attributes of an inode, by full name, in the form
// in which user space sees them.
func (f *FS) xattrs(n *node) (map[string][]byte, error) {
	out := map[string][]byte{}
	if start := goodOldSize + int(n.extraIsize); n.extraIsize > 0 && start+xattrIbodyHeader <= len(n.raw) {
		b := n.raw[start:]
		if le.Uint32(b) == xattrMagic {
			b = b[xattrIbodyHeader:]
			if err := f.parseXattrs(n, b, 0, out); err != nil {
				return nil, err
			}
		}
	}
	if n.fileACL == 0 {
		return out, nil
	}
	b := make([]byte, f.block)
	if err := f.readBlock(b, n.fileACL); err != nil {
		return nil, err
	}
	if le.Uint32(b) != xattrMagic || le.Uint32(b[8:]) != 1 {
		return nil, corrupt("inode %d: extended attribute block %d", n.ino, n.fileACL)
	}
	if f.verify {
		sum := le.Uint32(b[16:])
		le.PutUint32(b[16:], 0)
		if xattrBlockChecksum(f.seed, n.fileACL, b) != sum {
			return nil, corrupt("inode %d: wrong checksum of extended attribute block %d", n.ino, n.fileACL)
		}
	}
	return out, f.parseXattrs(n, b, xattrHeaderSize, out)
}

// parseXattrs reads entries from offset off of b on; values' offsets count from
// b's begin.
func (f *FS) parseXattrs(n *node, b []byte, off int, out map[string][]byte) error {
	for {
		if off+4 > len(b) {
			return corrupt("inode %d: extended attributes without an end", n.ino)
		}
		if le.Uint32(b[off:]) == 0 {
			return nil
		}
		if off+xattrEntrySize > len(b) || off+xattrEntrySize+int(b[off]) > len(b) {
			return corrupt("inode %d: extended attribute name", n.ino)
		}
		e := b[off:]
		x := xattr{index: e[1], name: string(e[xattrEntrySize : xattrEntrySize+int(e[0])])}
		off += x.entrySize()
		at, inum, size := int64(le.Uint16(e[2:])), le.Uint32(e[4:]), int64(le.Uint32(e[8:]))
		switch {
		case size > maxXattrValue:
			return corrupt("inode %d: extended attribute of %d bytes", n.ino, size)
		case inum != 0:
			v, err := f.inode(inum)
			if err != nil {
				return err
			}
			if v.flags&inodeEAInode == 0 || v.mode&modeFmt != modeRegular || int64(v.size) != size {
				return corrupt("inode %d: extended attribute in inode %d", n.ino, inum)
			}
			x.value = make([]byte, size)
			if err := f.readFile(v, x.value, 0); err != nil {
				return err
			}
		case size > 0:
			if at+size > int64(len(b)) {
				return corrupt("inode %d: extended attribute value", n.ino)
			}
			x.value = append([]byte(nil), b[at:at+size]...)
		default:
			x.value = []byte{}
		}
		if x.index == xattrACLAccess || x.index == xattrACLDefault {
			var err error
			if x.value, err = xattrACL(x.value); err != nil {
				return err
			}
		}
		out[x.fullName()] = x.value
	}
}
