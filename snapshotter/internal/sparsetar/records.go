package sparsetar

import (
	"archive/tar"
	"strings"
	"time"
)

// Keywords of PAX records (POSIX, pax, "pax Extended Header Keywords") and the
// prefix of star's for extended attributes.
const (
	paxPath     = "path"
	paxLinkpath = "linkpath"
	paxSize     = "size"
	paxUid      = "uid"
	paxGid      = "gid"
	paxUname    = "uname"
	paxGname    = "gname"
	paxMtime    = "mtime"
	paxAtime    = "atime"
	paxCtime    = "ctime"
	paxXattr    = "SCHILY.xattr."
)

// maxReused is how many records the maps may have had that are used again: to clear
// a map takes as long as it once was large.
const maxReused = 64

// paxRecords are the records of an ordinary entry's PAX header.
type paxRecords struct {
	all    map[string]string
	xattrs map[string]string

	size, uid, gid      int64
	mtime, atime, ctime time.Time
}

// parse reads records. It is false for what is not ordinary: sparse files, values
// that are missing, numbers that are more than digits, and whatever is wrong.
func (p *paxRecords) parse(b []byte) bool {
	if p.all == nil || len(p.all) > maxReused {
		p.all, p.xattrs = map[string]string{}, map[string]string{}
	}
	clear(p.all)
	clear(p.xattrs)
	for s := string(b); s != ""; {
		key, value, rest, err := cutRecord(s)
		if err != nil || value == "" || !p.take(key, value) {
			return false
		}
		p.all[key] = value
		s = rest
	}
	return true
}

// take looks at one record. It says whether that is ordinary.
func (p *paxRecords) take(key, value string) (ok bool) {
	switch key {
	case paxPath, paxLinkpath, paxUname, paxGname:
		return strings.IndexByte(value, 0) < 0
	case paxSize:
		p.size, ok = decimal(value)
	case paxUid:
		p.uid, ok = decimal(value)
	case paxGid:
		p.gid, ok = decimal(value)
	case paxMtime:
		p.mtime, ok = paxTime(value)
	case paxAtime:
		p.atime, ok = paxTime(value)
	case paxCtime:
		p.ctime, ok = paxTime(value)
	default:
		if name, isXattr := strings.CutPrefix(key, paxXattr); isXattr {
			p.xattrs[name] = value
		}
		return !strings.HasPrefix(key, sparsePrefix)
	}
	return ok
}

func (p *paxRecords) has(key string) bool { _, ok := p.all[key]; return ok }

// apply makes a header say what the records do.
func (p *paxRecords) apply(h *tar.Header) {
	h.PAXRecords = p.all
	if len(p.xattrs) > 0 {
		h.Xattrs = p.xattrs //nolint:staticcheck // archive/tar still fills it
	}
	for key, value := range p.all {
		switch key {
		case paxPath:
			h.Name = value
		case paxLinkpath:
			h.Linkname = value
		case paxUname:
			h.Uname = value
		case paxGname:
			h.Gname = value
		case paxSize:
			h.Size = p.size
		case paxUid:
			h.Uid = int(p.uid)
		case paxGid:
			h.Gid = int(p.gid)
		case paxMtime:
			h.ModTime = p.mtime
		case paxAtime:
			h.AccessTime = p.atime
		case paxCtime:
			h.ChangeTime = p.ctime
		}
	}
}

// maxDigits is how many digits always make a number of 64 bits.
const maxDigits = 18

// decimal reads a number of digits alone.
func decimal(s string) (n int64, ok bool) {
	if s == "" || len(s) > maxDigits {
		return 0, false
	}
	for i := range len(s) {
		c := s[i] - '0'
		if c > 9 {
			return 0, false
		}
		n = n*10 + int64(c)
	}
	return n, true
}

// paxTime reads seconds with a fraction, of which nanoseconds count.
func paxTime(s string) (time.Time, bool) {
	whole, fraction, _ := strings.Cut(s, ".")
	sec, ok := decimal(whole)
	if !ok {
		return time.Time{}, false
	}
	var nsec int64
	digits := 0
	for i := range len(fraction) {
		c := fraction[i] - '0'
		if c > 9 {
			return time.Time{}, false
		}
		if digits < 9 {
			nsec = nsec*10 + int64(c)
			digits++
		}
	}
	for ; digits < 9; digits++ {
		nsec *= 10
	}
	return time.Unix(sec, nsec), true
}
