package ext4

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// POSIX ACLs have two forms: the one that user space and tar see
// (include/uapi/linux/posix_acl_xattr.h: version 2, entries of eight bytes) and
// ext4's own (fs/ext4/acl.h: version 1, entries of four bytes where no id is
// needed).
const (
	aclXattrVersion   = 2
	aclXattrEntrySize = 8
	aclDiskVersion    = 1
	aclHeaderSize     = 4
	aclShortEntry     = 4
	aclLongEntry      = 8
	aclNoID           = 0xFFFFFFFF

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

func (e aclEntry) hasID() bool { return e.tag == aclUser || e.tag == aclGroup }

// parseACLXattr reads an ACL in user space's form and checks it as the
// kernel's posix_acl_valid does: entries in order, exactly one of each object,
// a mask if there are named users or groups.
func parseACLXattr(v []byte) ([]aclEntry, error) {
	bad := func(why string) ([]aclEntry, error) {
		return nil, fmt.Errorf("POSIX ACL %s: %w", why, errdefs.ErrInvalidArgument)
	}
	if len(v) < aclHeaderSize || (len(v)-aclHeaderSize)%aclXattrEntrySize != 0 {
		return bad(fmt.Sprintf("has a length of %d bytes", len(v)))
	}
	if ver := le.Uint32(v); ver != aclXattrVersion {
		return bad(fmt.Sprintf("has version %d instead of %d", ver, aclXattrVersion))
	}
	var acl []aclEntry
	seen := map[uint16]bool{}
	last := uint16(0)
	for v = v[aclHeaderSize:]; len(v) > 0; v = v[aclXattrEntrySize:] {
		e := aclEntry{tag: le.Uint16(v), perm: le.Uint16(v[2:]), id: le.Uint32(v[4:])}
		switch e.tag {
		case aclUserObj, aclUser, aclGroupObj, aclGroup, aclMask, aclOther:
		default:
			return bad(fmt.Sprintf("has an entry of unknown kind %#x", e.tag))
		}
		switch {
		case e.perm&^7 != 0:
			return bad(fmt.Sprintf("has permissions %#o", e.perm))
		case e.tag < last || seen[e.tag] && !e.hasID():
			return bad("has entries out of order")
		case e.hasID() && e.id == aclNoID:
			return bad("names no user or group in an entry that needs one")
		}
		last, seen[e.tag] = e.tag, true
		acl = append(acl, e)
	}
	if len(acl) == 0 {
		return nil, nil // an empty list means none
	}
	if !seen[aclUserObj] || !seen[aclGroupObj] || !seen[aclOther] {
		return bad("lacks its owner's, group's or others' entry")
	}
	if (seen[aclUser] || seen[aclGroup]) && !seen[aclMask] {
		return bad("has named users or groups and no mask")
	}
	return acl, nil
}

// diskACL returns acl in ext4's form.
func diskACL(acl []aclEntry) []byte {
	b := le.AppendUint32(nil, aclDiskVersion)
	for _, e := range acl {
		b = le.AppendUint16(b, e.tag)
		b = le.AppendUint16(b, e.perm)
		if e.hasID() {
			b = le.AppendUint32(b, e.id)
		}
	}
	return b
}

// xattrACL returns an ACL in ext4's form as user space sees it.
func xattrACL(v []byte) ([]byte, error) {
	if len(v) < aclHeaderSize || le.Uint32(v) != aclDiskVersion {
		return nil, corrupt("ACL header")
	}
	b := le.AppendUint32(nil, aclXattrVersion)
	for v = v[aclHeaderSize:]; len(v) > 0; {
		if len(v) < aclShortEntry {
			return nil, corrupt("ACL entry")
		}
		e := aclEntry{tag: le.Uint16(v), perm: le.Uint16(v[2:]), id: aclNoID}
		n := aclShortEntry
		if e.hasID() {
			if n = aclLongEntry; len(v) < n {
				return nil, corrupt("ACL entry")
			}
			e.id = le.Uint32(v[4:])
		}
		v = v[n:]
		b = le.AppendUint16(b, e.tag)
		b = le.AppendUint16(b, e.perm)
		b = le.AppendUint32(b, e.id)
	}
	return b, nil
}

// aclMode returns mode with the permissions that an access ACL implies, and
// whether those say all that the ACL says, so that it need not be stored
// (the kernel's posix_acl_equiv_mode).
func aclMode(mode uint16, acl []aclEntry) (_ uint16, equivalent bool) {
	var user, group, other, mask uint16
	hasMask, named := false, false
	for _, e := range acl {
		switch e.tag {
		case aclUserObj:
			user = e.perm
		case aclGroupObj:
			group = e.perm
		case aclOther:
			other = e.perm
		case aclMask:
			mask, hasMask = e.perm, true
		default:
			named = true
		}
	}
	if hasMask {
		group = mask
	}
	return mode&^0o777 | user<<6 | group<<3 | other, !named && !hasMask
}
