package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Request is the type of a message from the front-end.
type Request uint32

// The requests that Server answers (vhost-user.rst, "Front-end message types").
const (
	GetFeatures         Request = 1
	SetFeatures         Request = 2
	SetOwner            Request = 3
	ResetOwner          Request = 4
	SetMemTable         Request = 5
	SetVringNum         Request = 8
	SetVringAddr        Request = 9
	SetVringBase        Request = 10
	GetVringBase        Request = 11
	SetVringKick        Request = 12
	SetVringCall        Request = 13
	SetVringErr         Request = 14
	GetProtocolFeatures Request = 15
	SetProtocolFeatures Request = 16
	GetQueueNum         Request = 17
	SetVringEnable      Request = 18
	GetConfig           Request = 24
	SetConfig           Request = 25
)

// Feature bits of the device (virtio 1.2 section 6, and vhost-user.rst for
// bit 30) and of the protocol.
const (
	FeatureIndirectDesc     = 1 << 28
	FeatureEventIdx         = 1 << 29
	FeatureProtocolFeatures = 1 << 30
	FeatureVersion1         = 1 << 32

	ProtocolFeatureMQ       = 1 << 0
	ProtocolFeatureReplyAck = 1 << 3
	ProtocolFeatureConfig   = 1 << 9
)

const (
	headerSize = 12
	// maxPayload bounds what a front-end may announce: the longest payload we
	// know is a device's configuration space (256 bytes and a header).
	maxPayload = 1024
	// maxFDs is the number of descriptors that one message may carry
	// (VHOST_MEMORY_BASELINE_NREGIONS of vhost-user.rst).
	maxFDs = 8
	// maxConfig is the size of the configuration space (VHOST_USER_MAX_CONFIG_SIZE).
	maxConfig = 256

	flagVersion     = 1
	flagVersionMask = 3
	flagReply       = 1 << 2
	flagNeedReply   = 1 << 3

	vringIndexMask = 0xff
	vringNoFD      = 1 << 8
)

var errMessage = errors.New("vhost-user message")

// header precedes each message.
type header struct {
	Request Request
	Flags   uint32
	Size    uint32
}

// parseHeader checks version, direction and length of a front-end's header.
func parseHeader(b []byte) (header, error) {
	if len(b) < headerSize {
		return header{}, fmt.Errorf("%w: header of %d bytes", errMessage, len(b))
	}
	h := header{
		Request: Request(binary.LittleEndian.Uint32(b)),
		Flags:   binary.LittleEndian.Uint32(b[4:]),
		Size:    binary.LittleEndian.Uint32(b[8:]),
	}
	switch {
	case h.Flags&flagVersionMask != flagVersion:
		return h, fmt.Errorf("%w %d: version %d", errMessage, h.Request, h.Flags&flagVersionMask)
	case h.Flags&flagReply != 0:
		return h, fmt.Errorf("%w %d: a reply where a request is due", errMessage, h.Request)
	case h.Size > maxPayload:
		return h, fmt.Errorf("%w %d: payload of %d bytes", errMessage, h.Request, h.Size)
	}
	return h, nil
}

// appendReply appends the reply to req with the payload.
func appendReply(b []byte, req Request, payload []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(req))
	b = binary.LittleEndian.AppendUint32(b, flagVersion|flagReply)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// parseU64 reads the payload of the requests that carry one number.
func parseU64(b []byte) (uint64, error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("%w: %d bytes where 8 are due", errMessage, len(b))
	}
	return binary.LittleEndian.Uint64(b), nil
}

// vringState is the payload of SetVringNum, SetVringBase and SetVringEnable.
type vringState struct {
	Index uint32
	Num   uint32
}

func parseVringState(b []byte) (vringState, error) {
	if len(b) != 8 {
		return vringState{}, fmt.Errorf("%w: ring state of %d bytes", errMessage, len(b))
	}
	return vringState{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])}, nil
}

// vringAddr is the payload of SetVringAddr; the addresses are the front-end's own.
type vringAddr struct {
	Index, Flags           uint32
	Desc, Used, Avail, Log uint64
}

func parseVringAddr(b []byte) (vringAddr, error) {
	if len(b) != 40 {
		return vringAddr{}, fmt.Errorf("%w: ring addresses of %d bytes", errMessage, len(b))
	}
	le := binary.LittleEndian
	return vringAddr{
		Index: le.Uint32(b), Flags: le.Uint32(b[4:]),
		Desc: le.Uint64(b[8:]), Used: le.Uint64(b[16:]), Avail: le.Uint64(b[24:]), Log: le.Uint64(b[32:]),
	}, nil
}

// regionInfo is one entry of SetMemTable.
type regionInfo struct {
	GuestAddr, Size, UserAddr, MmapOffset uint64
}

// parseMemTable reads SetMemTable's payload, which came with so many descriptors.
func parseMemTable(b []byte, fds int) ([]regionInfo, error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("%w: memory table of %d bytes", errMessage, len(b))
	}
	n := binary.LittleEndian.Uint32(b)
	if n > maxFDs || int(n) != fds || len(b) != 8+32*int(n) {
		return nil, fmt.Errorf("%w: memory table of %d regions, %d bytes and %d descriptors", errMessage, n, len(b), fds)
	}
	regions := make([]regionInfo, n)
	for i := range regions {
		e, le := b[8+32*i:], binary.LittleEndian
		regions[i] = regionInfo{le.Uint64(e), le.Uint64(e[8:]), le.Uint64(e[16:]), le.Uint64(e[24:])}
	}
	return regions, nil
}

// configRequest is the payload of GetConfig: a range of the device's configuration space.
type configRequest struct {
	Offset, Size, Flags uint32
}

const configHeaderSize = 12

func parseConfigRequest(b []byte) (configRequest, error) {
	if len(b) < configHeaderSize {
		return configRequest{}, fmt.Errorf("%w: configuration request of %d bytes", errMessage, len(b))
	}
	le := binary.LittleEndian
	c := configRequest{le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])}
	if c.Offset > maxConfig || c.Size > maxConfig-c.Offset || int(c.Size) != len(b)-configHeaderSize {
		return c, fmt.Errorf("%w: configuration request for %d bytes at %d", errMessage, c.Size, c.Offset)
	}
	return c, nil
}

// configReply answers r from the device's configuration space; what lies past
// its end reads as zero.
func configReply(r configRequest, space []byte) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, r.Offset)
	b = le.AppendUint32(b, r.Size)
	b = le.AppendUint32(b, r.Flags)
	data := make([]byte, r.Size)
	if int(r.Offset) < len(space) {
		copy(data, space[r.Offset:])
	}
	return append(b, data...)
}
