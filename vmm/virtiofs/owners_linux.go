package virtiofs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// An ordinary user can give no file away. So where the server is not root, what the guest
// makes of a file's owner and mode is kept beside it in an extended attribute, and the guest's
// kernel, which decides who may do what, is told these. Files without the attribute belong
// to root for the guest if they are the user's, and else to nobody, as in a user
// namespace of rootless containers.

const (
	// ownerXattr has the name and form that containers/storage and fuse-overlayfs use for
	// this purpose: UID:GID:MODE, the mode in octal, and perhaps a type after that
	// (github.com/containers/storage, pkg/idtools, ContainersOverrideXattr).
	ownerXattr = "user.containers.override_stat"
	// maxOwnerXattr is more than any has.
	maxOwnerXattr = 64
	// overflowID is nobody's (Linux's /proc/sys/kernel/overflowuid).
	overflowID = 65534
)

// owners knows whom files belong to.
type owners struct{ uid uint32 }

// record is what the attribute says.
type record struct{ uid, gid, mode uint32 }

func (r record) String() string { return fmt.Sprintf("%d:%d:0%o", r.uid, r.gid, r.mode) }

func parseRecord(s string) (r record, ok bool) {
	f := strings.Split(s, ":")
	if len(f) != 3 && len(f) != 4 {
		return r, false
	}
	for i, to := range []*uint32{&r.uid, &r.gid, &r.mode} {
		v, err := strconv.ParseUint(f[i], []int{10, 10, 8}[i], 32)
		if err != nil {
			return r, false
		}
		*to = uint32(v)
	}
	// The last ID means "none" to chown(2).
	return r, r.uid != ^uint32(0) && r.gid != ^uint32(0) && r.mode&^0o7777 == 0
}

// show makes of a file's status what the guest is to see.
func (o *owners) show(fd int, stx *unix.Statx_t) {
	if o == nil {
		return
	}
	if stx.Uid != o.uid {
		stx.Uid, stx.Gid = overflowID, overflowID
		return
	}
	stx.Uid, stx.Gid = 0, 0
	if !canRecord(stx.Mode) {
		return
	}
	b := make([]byte, maxOwnerXattr)
	n, err := ignoringEINTR(func() (int, error) { return unix.Getxattr(procPath(fd), ownerXattr, b) })
	if err != nil {
		return
	}
	if r, ok := parseRecord(string(b[:n])); ok {
		stx.Uid, stx.Gid, stx.Mode = r.uid, r.gid, stx.Mode&unix.S_IFMT|uint16(r.mode)
	}
}

// canRecord tells whether files of this type may have attributes (xattr(7)).
func canRecord(mode uint16) bool {
	kind := mode & unix.S_IFMT
	return kind == unix.S_IFREG || kind == unix.S_IFDIR
}

// set gives a file another owner, group and mode as the guest sees them; each as it is if
// negative. On the host the user can always read and write it, and no file has set-ID bits.
func (o *owners) set(fd, uid, gid, mode int) error {
	stx, err := stat(fd)
	if err != nil {
		return err
	}
	if stx.Uid != o.uid {
		return unix.EPERM
	}
	host := uint32(stx.Mode) & 0o7777
	kind := stx.Mode & unix.S_IFMT
	o.show(fd, stx)
	was := record{stx.Uid, stx.Gid, uint32(stx.Mode) & 0o7777}
	is := was
	if uid >= 0 {
		is.uid = uint32(uid)
	}
	if gid >= 0 {
		is.gid = uint32(gid)
	}
	if is != was && kind == unix.S_IFREG {
		is.mode &^= setIDs // a new owner takes them away (chown(2))
	}
	if mode >= 0 {
		is.mode = uint32(mode) & 0o7777
	}
	switch {
	case kind == unix.S_IFLNK:
		// A link's owner means nothing to who follows it, and it has no mode.
		return nil
	case !canRecord(kind):
		if is.uid != was.uid || is.gid != was.gid {
			return unix.EPERM
		}
		return chmod(fd, is.mode)
	}
	must := uint32(0o600)
	if kind == unix.S_IFDIR {
		must = 0o700
	}
	if want := is.mode&0o777 | must; want != host {
		if err := chmod(fd, want); err != nil {
			return err
		}
		host = want
	}
	if is == (record{mode: host}) {
		err = again(func() error { return unix.Removexattr(procPath(fd), ownerXattr) })
		if errors.Is(err, unix.ENODATA) {
			err = nil
		}
	} else {
		err = again(func() error { return unix.Setxattr(procPath(fd), ownerXattr, []byte(is.String()), 0) })
	}
	if errors.Is(err, unix.ENOTSUP) {
		return unix.EPERM // as without the attribute
	}
	return err
}

// settleOwner is settle where owners are recorded. What cannot have a record belongs to
// root; listed says that an access control list decides the mode.
func (fs *fileSystem) settleOwner(fd, uid, gid int, mode uint32, listed bool) error {
	m := int(mode & 0o7777)
	if listed {
		m = -1
	}
	if !canRecord(uint16(mode)) {
		uid, gid = -1, -1
	}
	return fs.owners.set(fd, uid, gid, m)
}
