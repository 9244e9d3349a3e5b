package vhostuser

import (
	"errors"
	"fmt"
	"math"
)

// ErrAddress says that an address or a length is not within the guest's memory.
var ErrAddress = errors.New("not in the guest's memory")

// region is one mapped part of the guest's memory.
type region struct {
	regionInfo
	data  []byte
	unmap func() error
}

// Memory is the guest's memory as the front-end last announced it.
type Memory struct {
	regions []region
}

// check refuses regions whose arithmetic would wrap around or that overlap.
func checkRegions(infos []regionInfo) error {
	for i, r := range infos {
		if r.Size == 0 || r.GuestAddr > math.MaxUint64-r.Size || r.UserAddr > math.MaxUint64-r.Size ||
			r.MmapOffset > math.MaxInt64 || r.Size > math.MaxInt64-r.MmapOffset {
			return fmt.Errorf("%w: memory region %d has size %#x at %#x", errMessage, i, r.Size, r.GuestAddr)
		}
		for _, o := range infos[:i] {
			if r.GuestAddr < o.GuestAddr+o.Size && o.GuestAddr < r.GuestAddr+r.Size {
				return fmt.Errorf("%w: memory region %d overlaps another", errMessage, i)
			}
		}
	}
	return nil
}

// guest returns the memory at the guest's physical address, at most length
// bytes of it: fewer where a region ends.
func (m *Memory) guest(addr uint64, length uint32) ([]byte, error) {
	for i := range m.regions {
		r := &m.regions[i]
		if off := addr - r.GuestAddr; addr >= r.GuestAddr && off < r.Size {
			return r.data[off : off+min(uint64(length), r.Size-off)], nil
		}
	}
	return nil, fmt.Errorf("guest address %#x: %w", addr, ErrAddress)
}

// user returns length bytes at an address of the front-end's.
func (m *Memory) user(addr, length uint64) ([]byte, error) {
	for i := range m.regions {
		r := &m.regions[i]
		if off := addr - r.UserAddr; addr >= r.UserAddr && off < r.Size {
			if length > r.Size-off {
				break
			}
			return r.data[off : off+length : off+length], nil
		}
	}
	return nil, fmt.Errorf("ring address %#x with %d bytes: %w", addr, length, ErrAddress)
}

// Close unmaps the memory. Nobody may use it any more.
func (m *Memory) Close() error {
	var errs []error
	for _, r := range m.regions {
		if r.unmap != nil {
			errs = append(errs, r.unmap())
		}
	}
	m.regions = nil
	return errors.Join(errs...)
}
