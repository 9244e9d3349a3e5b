package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxUserFile is how much of /etc/passwd and /etc/group is read, in bytes.
const maxUserFile = 8 << 20

// resolveUser replaces a user's name by the numbers that the files in root give
// it. It does nothing if the client has resolved the user, or named none.
// Clients without a view of the image leave names to the guest: "name",
// "name:group" or numbers.
func resolveUser(u *specs.User, root string) error {
	if u.Username == "" || u.UID != 0 {
		return nil
	}
	passwd, err := readUserFile(root, "/etc/passwd")
	if err != nil {
		return err
	}
	group, err := readUserFile(root, "/etc/group")
	if err != nil {
		return err
	}
	found, err := user.GetExecUser(u.Username, nil, bytes.NewReader(passwd), bytes.NewReader(group))
	if err != nil {
		return invalid("user %q: %w", u.Username, err)
	}
	u.UID, u.GID = uint32(found.Uid), uint32(found.Gid)
	have := make(map[uint32]bool)
	for _, g := range u.AdditionalGids {
		have[g] = true
	}
	for _, g := range found.Sgids {
		if !have[uint32(g)] {
			u.AdditionalGids = append(u.AdditionalGids, uint32(g))
		}
	}
	return nil
}

func readUserFile(root, name string) ([]byte, error) {
	b, err := readLimit(root, name, maxUserFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look the user up: %w", err)
	}
	return b, nil
}
