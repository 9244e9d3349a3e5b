package vhostuser

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// mapMemory maps the regions; fds[i] is the file behind infos[i]. The
// descriptors stay the caller's.
func mapMemory(infos []regionInfo, fds []int) (*Memory, error) {
	if err := checkRegions(infos); err != nil {
		return nil, err
	}
	m := &Memory{}
	for i, info := range infos {
		data, err := mapRegion(info, fds[i])
		if err != nil {
			_ = m.Close()
			return nil, err
		}
		m.regions = append(m.regions, region{
			regionInfo: info,
			data:       data[info.MmapOffset:],
			unmap:      func() error { return unix.Munmap(data) },
		})
	}
	return m, nil
}

func mapRegion(info regionInfo, fd int) ([]byte, error) {
	// Touching a page past the file's end would be a SIGBUS.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("guest memory: %w", err)
	}
	end := int64(info.MmapOffset + info.Size)
	if end > st.Size {
		return nil, fmt.Errorf("%w: memory region ends at %#x of a file of %#x bytes", errMessage, end, st.Size)
	}
	data, err := unix.Mmap(fd, 0, int(end), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map guest memory: %w", err)
	}
	return data, nil
}
