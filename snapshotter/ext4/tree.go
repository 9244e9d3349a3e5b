package ext4

// inode is a file of the layer while the layer is read. Its number comes at the
// end, when it is known which files remain.
type inode struct {
	mode     uint16
	uid, gid uint32
	major    uint32
	minor    uint32
	links    uint32
	ino      uint32
	size     int64
	mtime    timestamp
	atime    timestamp
	ctime    timestamp
	xattrs   *xattrSet // nil: none
	aclBlock uint64    // the attribute block, given at the end
	extents  []extent
	target   string // of a symlink
	dir      *dir   // of a directory
}

func (n *inode) isDir() bool { return n.dir != nil }

// dir is a directory's contents, in the order in which names came.
type dir struct {
	parent  *inode
	entries []entry
	// index finds a name's place in entries; nil while a search is as quick.
	index map[string]int32
	dead  int // removed entries
	// whiteouts are the names that the layer removes below this directory.
	whiteouts []string
	opaque    bool
	indexed   bool // written as a hash tree
}

type entry struct {
	name string
	node *inode // nil: removed
}

// indexFrom is how many entries a directory may have before it gets an index.
const indexFrom = 16

func (d *dir) find(name string) int {
	if d.index != nil {
		if i, ok := d.index[name]; ok {
			return int(i)
		}
		return -1
	}
	for i := range d.entries {
		if d.entries[i].node != nil && d.entries[i].name == name {
			return i
		}
	}
	return -1
}

func (d *dir) lookup(name string) *inode {
	if i := d.find(name); i >= 0 {
		return d.entries[i].node
	}
	return nil
}

// put adds a name that is not there.
func (d *dir) put(name string, n *inode) {
	d.entries = append(d.entries, entry{name, n})
	switch {
	case d.index != nil:
		d.index[name] = int32(len(d.entries) - 1)
	case len(d.entries) > indexFrom:
		d.index = make(map[string]int32, 2*len(d.entries))
		for i := range d.entries {
			if d.entries[i].node != nil {
				d.index[d.entries[i].name] = int32(i)
			}
		}
	}
}

// remove takes away entry i.
func (d *dir) remove(i int) {
	if d.index != nil {
		delete(d.index, d.entries[i].name)
	}
	d.entries[i] = entry{}
	d.dead++
	if d.dead > len(d.entries)/2 && d.dead > indexFrom {
		d.compact()
	}
}

// compact forgets removed entries, so that a name that is replaced again and
// again costs no memory.
func (d *dir) compact() {
	kept := d.entries[:0]
	for _, e := range d.entries {
		if e.node != nil {
			kept = append(kept, e)
		}
	}
	clear(d.entries[len(kept):])
	d.entries, d.dead = kept, 0
	if d.index != nil {
		clear(d.index)
		for i := range d.entries {
			d.index[d.entries[i].name] = int32(i)
		}
	}
}
