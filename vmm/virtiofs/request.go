package virtiofs

import (
	"bytes"
	"encoding/binary"
	"syscall"
)

// The opcodes that are served (include/uapi/linux/fuse.h), those whose requests
// or answers are special by name.
const (
	opForget      = 2
	opInit        = 26
	opDestroy     = 38
	opBatchForget = 42

	opRead        = 15
	opGetxattr    = 22
	opListxattr   = 23
	opReaddir     = 28
	opReaddirplus = 44
)

const (
	inHeaderSize  = 40
	outHeaderSize = 16

	// maxIO is the most data, in bytes, that one request carries in either
	// direction. Linux asks for at most 256 pages (FUSE_MAX_MAX_PAGES).
	maxIO = 1 << 20
	// maxRequest leaves room for headers and names.
	maxRequest = maxIO + 16<<10
	// maxAnswer likewise.
	maxAnswer = maxIO + 4<<10
	// maxXattr is the longest value and the longest list of names
	// (XATTR_SIZE_MAX and XATTR_LIST_MAX of include/uapi/linux/limits.h).
	maxXattr = 64 << 10
)

// served maps the opcodes that are served to the length of their fixed part,
// header included, in the protocol's versions since 7.12.
var served = map[uint32]int{
	1:             inHeaderSize, // LOOKUP
	opForget:      inHeaderSize + 8,
	3:             inHeaderSize + 16, // GETATTR
	4:             inHeaderSize + 88, // SETATTR
	5:             inHeaderSize,      // READLINK
	6:             inHeaderSize,      // SYMLINK
	8:             inHeaderSize + 16, // MKNOD
	9:             inHeaderSize + 8,  // MKDIR
	10:            inHeaderSize,      // UNLINK
	11:            inHeaderSize,      // RMDIR
	12:            inHeaderSize + 8,  // RENAME
	13:            inHeaderSize + 8,  // LINK
	14:            inHeaderSize + 8,  // OPEN
	opRead:        inHeaderSize + 40,
	16:            inHeaderSize + 40, // WRITE
	17:            inHeaderSize,      // STATFS
	18:            inHeaderSize + 24, // RELEASE
	20:            inHeaderSize + 16, // FSYNC
	21:            inHeaderSize + 8,  // SETXATTR
	opGetxattr:    inHeaderSize + 8,
	opListxattr:   inHeaderSize + 8,
	24:            inHeaderSize, // REMOVEXATTR
	opInit:        inHeaderSize + 16,
	27:            inHeaderSize + 8, // OPENDIR
	opReaddir:     inHeaderSize + 40,
	29:            inHeaderSize + 24, // RELEASEDIR
	30:            inHeaderSize + 16, // FSYNCDIR
	35:            inHeaderSize + 16, // CREATE
	36:            inHeaderSize + 8,  // INTERRUPT
	opDestroy:     inHeaderSize,
	opBatchForget: inHeaderSize + 8,
	43:            inHeaderSize + 32, // FALLOCATE
	opReaddirplus: inHeaderSize + 40,
	45:            inHeaderSize + 16, // RENAME2
	46:            inHeaderSize + 24, // LSEEK
	47:            inHeaderSize + 56, // COPY_FILE_RANGE
}

// header is the part of a request that is looked at before the protocol server
// gets it.
type header struct {
	opcode uint32
	unique uint64
}

// silent requests have no answer.
func (h header) silent() bool { return h.opcode == opForget || h.opcode == opBatchForget }

// check parses the header of a request and refuses what the protocol server is not to
// see; space is the room for the answer. ok is false for what cannot even be
// answered.
func check(req []byte, space int) (h header, refused syscall.Errno, ok bool) {
	le := binary.LittleEndian
	if len(req) < inHeaderSize {
		return h, 0, false
	}
	h = header{opcode: le.Uint32(req[4:]), unique: le.Uint64(req[8:])}
	size, known := served[h.opcode]
	switch {
	case h.silent():
		return h, 0, int(le.Uint32(req)) == len(req) && len(req) >= size && extensions(req) == 0
	case space < outHeaderSize:
		return h, 0, false
	case !known:
		return h, syscall.ENOSYS, true
	case int(le.Uint32(req)) != len(req) || len(req) < size || extensions(req) != 0:
		return h, syscall.EINVAL, true
	case le.Uint64(req[16:]) == reservedNode:
		return h, syscall.ESTALE, true
	case le.Uint64(req[16:]) == rootNode && firstName(req[size:]) == reservedName:
		return h, syscall.ENOENT, true
	}
	var wanted, limit uint32
	switch h.opcode {
	case opGetxattr, opListxattr:
		wanted, limit = le.Uint32(req[inHeaderSize:]), maxXattr
	case opRead, opReaddir, opReaddirplus:
		wanted, limit = le.Uint32(req[inHeaderSize+16:]), maxIO
	}
	switch {
	case wanted > limit:
		return h, syscall.EINVAL, true
	case space < outHeaderSize+int(wanted):
		return h, syscall.EIO, true
	}
	return h, 0, true
}

// What go-fuse's protocol server uses for itself (its poll.go).
const (
	rootNode     = 1
	reservedNode = ^uint64(0)
	reservedName = ".go-fuse-epoll-hack"
)

// extensions is the length of what newer protocols append to a request, in units
// of 8 bytes. None was agreed on.
func extensions(req []byte) uint16 { return binary.LittleEndian.Uint16(req[36:]) }

func firstName(payload []byte) string {
	name, _, _ := bytes.Cut(payload[:min(len(payload), 256)], []byte{0})
	return string(name)
}

// refuse is the answer that only has an error.
func refuse(h header, e syscall.Errno) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, outHeaderSize)
	b = le.AppendUint32(b, uint32(-int32(e)))
	return le.AppendUint64(b, h.unique)
}
