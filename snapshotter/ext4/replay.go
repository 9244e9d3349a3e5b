package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// More of the journal's format (include/linux/jbd2.h).
const (
	journalDescriptor = 1
	journalCommit     = 2
	journalRevoke     = 5

	journalHasRevoke   = 0x1
	journalHas64bit    = 0x2
	journalAsyncCommit = 0x4
	journalCsumV2      = 0x8
	journalCsumV3      = 0x10

	tagEscaped  = 1
	tagSameUUID = 2
	tagLast     = 8

	journalHeaderSize = 12
	journalTailSize   = 4
	// maxJournal bounds the blocks of a journal that is replayed; mke2fs makes
	// none of more than 1 GiB by itself.
	maxJournal = 1 << 20
)

// journalCopy is where the journal has the newest copy of a block. The first
// four bytes of an escaped copy are zero where the block has the journal's
// magic.
type journalCopy struct {
	block   uint64
	escaped bool
}

// replay finds out which blocks the journal has newer copies of, as the
// kernel's jbd2_journal_recover would write them: from the transactions that
// were committed, less the blocks that a later one revoked.
func (f *FS) replay(verify bool) error {
	if f.super.JournalInum == 0 {
		return fmt.Errorf("the journal is on another device: %w", errdefs.ErrNotImplemented)
	}
	n, err := f.inode(f.super.JournalInum)
	if err != nil {
		return err
	}
	j, err := f.openJournal(n, verify)
	if err != nil || j.super.Start == 0 {
		return err
	}
	// The log holds whole transactions up to the first that is not committed.
	end, err := j.scan(func(uint32, uint32, []byte) error { return nil }, nil)
	if err != nil {
		return err
	}
	revoked := map[uint64]uint32{}
	if _, err := j.scan(func(seq, kind uint32, b []byte) error {
		if kind == journalRevoke && seqBefore(seq, end) {
			return j.revokes(b, func(num uint64) { revoked[num] = seq })
		}
		return nil
	}, nil); err != nil {
		return err
	}
	replayed := map[uint64]journalCopy{}
	_, err = j.scan(nil, func(seq uint32, t journalTag, at uint64) error {
		if !seqBefore(seq, end) {
			return nil
		}
		if t.block >= f.blocks {
			return corrupt("journal: a copy of block %d of %d", t.block, f.blocks)
		}
		if r, ok := revoked[t.block]; ok && !seqBefore(r, seq) {
			return nil
		}
		if err := j.verifyCopy(seq, t, at); err != nil {
			return err
		}
		replayed[t.block] = journalCopy{block: at, escaped: t.flags&tagEscaped != 0}
		return nil
	})
	if err != nil {
		return err
	}
	f.replayed = replayed
	return nil
}

// seqBefore compares transaction numbers, which wrap around.
func seqBefore(a, b uint32) bool { return int32(a-b) < 0 }

// journal is a log while it is read.
type journal struct {
	fs     *FS
	node   *node
	super  journalSuperblock
	seed   uint32
	verify bool // v2 or v3 checksums
	tag    int  // bytes in a tag
	last   run  // what the last block was mapped by
	lastAt uint64
}

func (f *FS) openJournal(n *node, verify bool) (*journal, error) {
	j := &journal{fs: f, node: n}
	b := make([]byte, f.block)
	if _, err := j.read(b, 0); err != nil {
		return nil, err
	}
	s := &j.super
	if _, err := binary.Decode(b, binary.BigEndian, s); err != nil {
		return nil, err
	}
	if s.Header.Magic != journalMagic || s.Header.BlockType != journalSuperV1 && s.Header.BlockType != journalSuperV2 {
		return nil, corrupt("journal: no superblock")
	}
	if s.Header.BlockType == journalSuperV1 {
		s.FeatureIncompat = 0
	}
	const known = journalHasRevoke | journalHas64bit | journalAsyncCommit | journalCsumV2 | journalCsumV3
	if u := s.FeatureIncompat &^ known; u != 0 {
		return nil, fmt.Errorf("it has features that this reader does not know (incompat %#x): %w", u, errdefs.ErrNotImplemented)
	}
	csum := s.FeatureIncompat & (journalCsumV2 | journalCsumV3)
	if csum == journalCsumV2|journalCsumV3 {
		return nil, corrupt("journal: two kinds of checksums")
	}
	if int64(s.BlockSize) != f.block || s.MaxLen > maxJournal || uint64(s.MaxLen)*uint64(f.block) > n.size ||
		s.First == 0 || s.First >= s.MaxLen || s.Start >= s.MaxLen || s.Start != 0 && s.Start < s.First {
		return nil, corrupt("journal: %d blocks of %d bytes, log from %d, begin at %d", s.MaxLen, s.BlockSize, s.First, s.Start)
	}
	j.verify = verify && csum != 0
	if j.verify {
		sum := s.Checksum
		clear(b[0xFC:0x100])
		if crc32c(^uint32(0), b[:superSize]) != sum {
			return nil, corrupt("journal: wrong checksum of its superblock")
		}
	}
	j.seed = crc32c(^uint32(0), s.UUID[:])
	// jbd2's journal_tag_bytes.
	if csum == journalCsumV3 {
		j.tag = 16
		return j, nil
	}
	j.tag = 8
	if csum == journalCsumV2 {
		j.tag += 2
	}
	if s.FeatureIncompat&journalHas64bit != 0 {
		j.tag += 4
	}
	return j, nil
}

// locate returns the place on disk of a block of the journal.
func (j *journal) locate(logical uint64) (uint64, error) {
	if d := logical - j.lastAt; logical < j.lastAt || d >= j.last.count {
		r, err := j.fs.mapBlock(j.node, logical)
		if err != nil {
			return 0, err
		}
		if r.physical == 0 {
			return 0, corrupt("journal: block %d is a hole", logical)
		}
		j.last, j.lastAt = r, logical
	}
	return j.last.physical + logical - j.lastAt, nil
}

func (j *journal) read(b []byte, logical uint64) (uint64, error) {
	at, err := j.locate(logical)
	if err != nil {
		return 0, err
	}
	return at, j.fs.readBlock(b, at)
}

// journalTag says which block the next block of the log is a copy of.
type journalTag struct {
	block    uint64
	flags    uint32
	checksum uint32
}

// errLogEnd ends a scan at the first block that is not the log's next one.
var errLogEnd = errors.New("end of log")

// scan reads the log from its begin and calls block for each descriptor,
// commit and revoke block, and copied for each copy. It returns the number of
// the first transaction that is not whole.
func (j *journal) scan(block func(seq, kind uint32, b []byte) error, copied func(seq uint32, t journalTag, at uint64) error) (uint32, error) {
	s := &j.super
	b := make([]byte, j.fs.block)
	seq, at := s.Sequence, uint64(s.Start)
	left := s.MaxLen - s.First // no log is longer than the ring
	advance := func() (uint64, bool) {
		if left == 0 {
			return 0, false
		}
		left--
		cur := at
		if at++; at >= uint64(s.MaxLen) {
			at = uint64(s.First)
		}
		return cur, true
	}
	for {
		cur, ok := advance()
		if !ok {
			return seq, nil
		}
		if _, err := j.read(b, cur); err != nil {
			return 0, err
		}
		be := binary.BigEndian
		if be.Uint32(b) != journalMagic || be.Uint32(b[8:]) != seq {
			return seq, nil
		}
		kind := be.Uint32(b[4:])
		if !j.blockOK(kind, b) {
			return seq, nil // written only in part: the log ends before it
		}
		switch kind {
		case journalDescriptor:
			err := j.tags(b, func(t journalTag) error {
				cur, ok := advance()
				if !ok {
					return errLogEnd
				}
				if copied == nil {
					return nil
				}
				place, err := j.locate(cur)
				if err != nil {
					return err
				}
				return copied(seq, t, place)
			})
			if errors.Is(err, errLogEnd) {
				return seq, nil
			}
			if err != nil {
				return 0, err
			}
		case journalCommit, journalRevoke:
		default:
			return seq, nil
		}
		if block != nil {
			if err := block(seq, kind, b); err != nil {
				return 0, err
			}
		}
		if kind == journalCommit {
			seq++
		}
	}
}

// blockOK checks the checksum of a block of the log.
func (j *journal) blockOK(kind uint32, b []byte) bool {
	if !j.verify {
		return true
	}
	off := len(b) - journalTailSize
	if kind == journalCommit {
		off = 16 // h_chksum[0]
	}
	sum := binary.BigEndian.Uint32(b[off:])
	clear(b[off : off+4])
	ok := crc32c(j.seed, b) == sum
	binary.BigEndian.PutUint32(b[off:], sum)
	return ok
}

// tags calls f for each tag of a descriptor block.
func (j *journal) tags(b []byte, f func(journalTag) error) error {
	be := binary.BigEndian
	end := len(b)
	if j.super.FeatureIncompat&(journalCsumV2|journalCsumV3) != 0 {
		end -= journalTailSize
	}
	for off := journalHeaderSize; off+j.tag <= end; {
		p := b[off:]
		t := journalTag{block: uint64(be.Uint32(p))}
		if j.super.FeatureIncompat&journalCsumV3 != 0 {
			t.flags, t.checksum = be.Uint32(p[4:]), be.Uint32(p[12:])
		} else {
			t.checksum, t.flags = uint32(be.Uint16(p[4:])), uint32(be.Uint16(p[6:]))
		}
		if j.super.FeatureIncompat&journalHas64bit != 0 {
			t.block |= uint64(be.Uint32(p[8:])) << 32
		}
		off += j.tag
		if t.flags&tagSameUUID == 0 {
			off += 16
		}
		if err := f(t); err != nil {
			return err
		}
		if t.flags&tagLast != 0 {
			break
		}
	}
	return nil
}

// verifyCopy checks the checksum of a copied block.
func (j *journal) verifyCopy(seq uint32, t journalTag, at uint64) error {
	if !j.verify {
		return nil
	}
	b := make([]byte, j.fs.block)
	if err := j.fs.readBlock(b, at); err != nil {
		return err
	}
	var num [4]byte
	binary.BigEndian.PutUint32(num[:], seq)
	sum := crc32c(crc32c(j.seed, num[:]), b)
	if j.super.FeatureIncompat&journalCsumV3 == 0 {
		sum &= 0xFFFF // there is room for half of it only
	}
	if sum != t.checksum {
		return corrupt("journal: wrong checksum of the copy of block %d", t.block)
	}
	return nil
}

// revokes calls f for each block that a revoke block names.
func (j *journal) revokes(b []byte, f func(num uint64)) error {
	be := binary.BigEndian
	size := 4
	if j.super.FeatureIncompat&journalHas64bit != 0 {
		size = 8
	}
	used := int(be.Uint32(b[journalHeaderSize:]))
	if used < journalHeaderSize+4 || used > len(b) {
		return corrupt("journal: revoke block of %d bytes", used)
	}
	for off := journalHeaderSize + 4; off+size <= used; off += size {
		if size == 8 {
			f(be.Uint64(b[off:]))
		} else {
			f(uint64(be.Uint32(b[off:])))
		}
	}
	return nil
}
