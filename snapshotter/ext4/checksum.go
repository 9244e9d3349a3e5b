package ext4

import "hash/crc32"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c continues the checksum crc over p as the kernel's crc32c does: without
// the inversions before and after that the checksum has elsewhere.
func crc32c(crc uint32, p []byte) uint32 {
	return ^crc32.Update(^crc, castagnoli, p)
}

// crc32cU32 continues crc over v as four little-endian bytes.
func crc32cU32(crc, v uint32) uint32 {
	var b [4]byte
	le.PutUint32(b[:], v)
	return crc32c(crc, b[:])
}

// inodeSeed returns the seed of everything that belongs to one inode: the file
// system's seed continued over the inode's number and generation.
func inodeSeed(fsSeed, ino, generation uint32) uint32 {
	return crc32cU32(crc32cU32(fsSeed, ino), generation)
}

// setInodeChecksum puts the checksum into the marshalled inode b.
func setInodeChecksum(fsSeed, ino uint32, b []byte) {
	le.PutUint16(b[inodeCsumLoOff:], 0)
	le.PutUint16(b[inodeCsumHiOff:], 0)
	c := crc32c(inodeSeed(fsSeed, ino, le.Uint32(b[0x64:])), b)
	le.PutUint16(b[inodeCsumLoOff:], uint16(c))
	le.PutUint16(b[inodeCsumHiOff:], uint16(c>>16))
}

// groupChecksum returns the checksum of the marshalled descriptor b, whose
// checksum field is zero.
func groupChecksum(fsSeed, group uint32, b []byte) uint16 {
	return uint16(crc32c(crc32cU32(fsSeed, group), b))
}

// xattrBlockChecksum returns the checksum of the attribute block b, whose
// checksum field is zero, at block number n.
func xattrBlockChecksum(fsSeed uint32, n uint64, b []byte) uint32 {
	var num [8]byte
	le.PutUint64(num[:], n)
	return crc32c(crc32c(fsSeed, num[:]), b)
}
