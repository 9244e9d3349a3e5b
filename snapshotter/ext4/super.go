package ext4

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
)

// geometry says how an image is divided.
type geometry struct {
	blocks         uint64
	groups         uint32
	inodesPerGroup uint32
}

// groupStart returns the first block of group g, groupEnd the one after its last.
func (g *geometry) groupStart(group uint32) uint64 { return uint64(group) * blocksPerGroup }

func (g *geometry) groupEnd(group uint32) uint64 {
	return min(g.groupStart(group)+blocksPerGroup, g.blocks)
}

// gdtBlocks returns how many blocks the group descriptors take.
func (g *geometry) gdtBlocks() uint64 {
	return (uint64(g.groups)*groupDescSize + blockSize - 1) / blockSize
}

// itableBlocks returns how many blocks a group's inode table takes.
func (g *geometry) itableBlocks() uint64 { return uint64(g.inodesPerGroup) / inodesPerBlock }

// newSuperblock returns what the superblocks of all images have in common.
func newSuperblock(g *geometry, uuid [16]byte) *superblock {
	s := &superblock{
		InodesCount:      g.groups * g.inodesPerGroup,
		BlocksCountLo:    uint32(g.blocks),
		BlocksCountHi:    uint32(g.blocks >> 32),
		LogBlockSize:     blockBits - 10,
		LogClusterSize:   blockBits - 10,
		BlocksPerGroup:   blocksPerGroup,
		ClustersPerGroup: blocksPerGroup,
		InodesPerGroup:   g.inodesPerGroup,
		MaxMntCount:      0xFFFF, // never check because of mounts
		Magic:            superMagic,
		State:            stateValid,
		Errors:           errorsContinue,
		RevLevel:         dynamicRev,
		FirstIno:         inoFirst,
		InodeSize:        inodeSize,
		FeatureCompat:    compatExtAttr | compatDirIndex | compatSparseSuper2,
		FeatureIncompat:  incompatFiletype | incompatExtents | incompat64bit | incompatFlexBG | incompatCsumSeed,
		FeatureRoCompat: roCompatLargeFile | roCompatHugeFile | roCompatDirNlink |
			roCompatExtraIsize | roCompatMetadataCsum,
		UUID:             uuid,
		DefHashVersion:   dxHashHalfMD4,
		DescSize:         groupDescSize,
		DefaultMountOpts: mountOptXattrACL,
		MinExtraIsize:    extraIsize,
		WantExtraIsize:   extraIsize,
		Flags:            hashUnsigned,
		LogGroupsPerFlex: 4,
		ChecksumType:     crc32cType,
		ChecksumSeed:     crc32c(^uint32(0), uuid[:]),
	}
	// The hash seed makes collisions in a directory hard to prepare.
	seed := sha256.Sum256(append([]byte("ext4 directory hash seed "), uuid[:]...))
	for i := range s.HashSeed {
		s.HashSeed[i] = le.Uint32(seed[4*i:])
	}
	return s
}

// setFree writes the counts of free blocks and inodes.
func (s *superblock) setFree(blocks uint64, inodes uint32) {
	s.FreeBlocksCountLo, s.FreeBlocksCountHi = uint32(blocks), uint32(blocks>>32)
	s.FreeInodesCount = inodes
}

// marshal returns the superblock with its checksum.
func (s *superblock) marshal() ([]byte, error) {
	var buf bytes.Buffer
	if err := binary.Write(&buf, le, s); err != nil {
		return nil, err
	}
	b := buf.Bytes()
	le.PutUint32(b[superSize-4:], crc32c(^uint32(0), b[:superSize-4]))
	return b, nil
}

// setBits sets the bits from to to-1 of a bitmap.
func setBits(b []byte, from, to uint64) { fillBits(b, from, to, true) }

func fillBits(b []byte, from, to uint64, on bool) {
	for from < to {
		if from%8 == 0 && to-from >= 8 {
			end := to / 8
			for i := from / 8; i < end; i++ {
				b[i] = 0
				if on {
					b[i] = 0xFF
				}
			}
			from = end * 8
			continue
		}
		if on {
			b[from/8] |= 1 << (from % 8)
		} else {
			b[from/8] &^= 1 << (from % 8)
		}
		from++
	}
}

// countBits returns the number of bits set in b.
func countBits(b []byte) uint32 {
	n := 0
	for ; len(b) >= 8; b = b[8:] {
		n += bits.OnesCount64(le.Uint64(b))
	}
	return uint32(n)
}
