package ext4

import "time"

// An inode's times reach from 1901-12-13 to 2446-05-10: 34 bits of seconds that
// start at -2^31 (Documentation/filesystems/ext4/inodes.rst).
const (
	minTime = -1 << 31
	maxTime = minTime + 1<<34 - 1
)

// encodeTime returns t as an inode holds it. A time out of ext4's range becomes
// the nearest one in it, as the kernel's timestamp_truncate does.
func encodeTime(t time.Time) timestamp {
	sec, nsec := t.Unix(), uint32(t.Nanosecond())
	switch {
	case sec < minTime:
		sec, nsec = minTime, 0
	case sec > maxTime:
		sec, nsec = maxTime, 0
	}
	epoch := uint32((sec - int64(int32(sec))) >> 32 & 3)
	return timestamp{sec: uint32(sec), extra: nsec<<2 | epoch}
}

// time returns the time that ts stands for.
func (ts timestamp) time() time.Time {
	sec := int64(int32(ts.sec)) + int64(ts.extra&3)<<32
	return time.Unix(sec, int64(ts.extra>>2))
}
