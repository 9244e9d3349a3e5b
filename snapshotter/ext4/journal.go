package ext4

// The journal's format (Documentation/filesystems/ext4/journal.rst,
// include/linux/jbd2.h). All of it is big-endian.
const (
	journalMagic   = 0xC03B3998
	journalSuperV1 = 3
	journalSuperV2 = 4
)

// journalHeader is struct journal_header_s, the begin of each journal block
// that is not a copy of another block.
type journalHeader struct {
	Magic     uint32
	BlockType uint32
	Sequence  uint32
}

// journalSuperblock is struct journal_superblock_s.
type journalSuperblock struct {
	Header          journalHeader
	BlockSize       uint32
	MaxLen          uint32 // blocks in the journal
	First           uint32 // first block of log
	Sequence        uint32 // first commit ID expected
	Start           uint32 // block of the log's begin, 0: nothing to replay
	Errno           uint32
	FeatureCompat   uint32
	FeatureIncompat uint32
	FeatureRoCompat uint32
	UUID            [16]byte
	Users           uint32
	DynSuper        uint32
	MaxTransaction  uint32
	MaxTransData    uint32
	ChecksumTy      uint8
	_               [3]byte
	FastCommitBlks  uint32
	Head            uint32
	_               [40]uint32
	Checksum        uint32
	UserUUIDs       [48][16]byte
}

// journalSize returns the blocks of the journal for a file system of that many
// blocks: 64 MiB as mke2fs has it, less for a small one, never under JBD2's
// minimum of 1024.
func journalSize(blocks uint64) uint32 {
	return uint32(min(max(blocks/64, 1024), 16384))
}
