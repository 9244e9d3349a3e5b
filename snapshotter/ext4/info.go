package ext4

import (
	"fmt"
	"math/bits"
)

// Info is what an image's superblock says of the image as a whole.
type Info struct {
	UUID [16]byte
	// Features have the names that dumpe2fs(8) gives them, in its order. One
	// without a name is FEATURE_C, FEATURE_I or FEATURE_R (compatible,
	// incompatible, read-only compatible) with its bit's number.
	Features  []string
	BlockSize int64
	// Blocks are all blocks of BlockSize bytes, those of metadata included.
	Blocks, FreeBlocks uint64
	Inodes, FreeInodes uint32
}

// Info returns what the superblock says. The free counts are not checked
// against the bitmaps, but are never above the totals.
func (f *FS) Info() Info {
	s := &f.super
	free := uint64(s.FreeBlocksCountLo)
	if s.FeatureIncompat&incompat64bit != 0 {
		free |= uint64(s.FreeBlocksCountHi) << 32
	}
	var features []string
	features = appendFeatures(features, 'C', s.FeatureCompat, compatNames)
	features = appendFeatures(features, 'I', s.FeatureIncompat, incompatNames)
	features = appendFeatures(features, 'R', s.FeatureRoCompat, roCompatNames)
	return Info{
		UUID:       s.UUID,
		Features:   features,
		BlockSize:  f.block,
		Blocks:     f.blocks,
		FreeBlocks: min(free, f.blocks),
		Inodes:     s.InodesCount,
		FreeInodes: min(s.FreeInodesCount, s.InodesCount),
	}
}

// The features' names by bit, as in e2fsprogs' lib/e2p/feature.c.
var (
	compatNames = map[uint32]string{
		0x1: "dir_prealloc", 0x2: "imagic_inodes", compatHasJournal: "has_journal", compatExtAttr: "ext_attr",
		0x10: "resize_inode", compatDirIndex: "dir_index", 0x100: "snapshot_bitmap",
		compatSparseSuper2: "sparse_super2", 0x400: "fast_commit", 0x800: "stable_inodes", 0x1000: "orphan_file",
	}
	incompatNames = map[uint32]string{
		incompatCompression: "compression", incompatFiletype: "filetype", incompatRecover: "needs_recovery",
		incompatJournalDev: "journal_dev", incompatMetaBG: "meta_bg", incompatExtents: "extent", incompat64bit: "64bit",
		incompatMMP: "mmp", incompatFlexBG: "flex_bg", incompatEAInode: "ea_inode", 0x1000: "dirdata",
		incompatCsumSeed: "metadata_csum_seed", incompatLargeDir: "large_dir", incompatInlineData: "inline_data",
		incompatEncrypt: "encrypt", incompatCasefold: "casefold",
	}
	roCompatNames = map[uint32]string{
		roCompatSparseSuper: "sparse_super", roCompatLargeFile: "large_file", roCompatHugeFile: "huge_file",
		roCompatGdtCsum: "uninit_bg", roCompatDirNlink: "dir_nlink", roCompatExtraIsize: "extra_isize",
		0x100: "quota", roCompatBigalloc: "bigalloc", roCompatMetadataCsum: "metadata_csum", 0x800: "replica",
		roCompatReadonly: "read-only", 0x2000: "project", 0x4000: "shared_blocks", 0x8000: "verity",
		0x10000: "orphan_present",
	}
)

func appendFeatures(to []string, class byte, set uint32, names map[uint32]string) []string {
	for ; set != 0; set &= set - 1 {
		i := bits.TrailingZeros32(set)
		name := names[1<<i]
		if name == "" {
			name = fmt.Sprintf("FEATURE_%c%d", class, i)
		}
		to = append(to, name)
	}
	return to
}
