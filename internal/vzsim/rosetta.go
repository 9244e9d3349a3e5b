package vz

import (
	"fmt"
	"os"
	"path/filepath"
)

// rosettaDir stands for Rosetta's share: a directory beside the program. If it is not there,
// Rosetta is not installed.
func rosettaDir() string {
	exe, err := os.Executable()
	if err != nil {
		return ""
	}
	return filepath.Join(filepath.Dir(exe), "rosetta.share")
}

// LinuxRosettaAvailability tells whether there is Rosetta.
type LinuxRosettaAvailability int

const (
	LinuxRosettaAvailabilityNotSupported LinuxRosettaAvailability = iota
	LinuxRosettaAvailabilityNotInstalled
	LinuxRosettaAvailabilityInstalled
)

// LinuxRosettaDirectoryShareAvailability tells it.
func LinuxRosettaDirectoryShareAvailability() LinuxRosettaAvailability {
	if _, err := os.Stat(rosettaDir()); err != nil {
		return LinuxRosettaAvailabilityNotInstalled
	}
	return LinuxRosettaAvailabilityInstalled
}

// LinuxRosettaDirectoryShare shares Rosetta.
type LinuxRosettaDirectoryShare struct{ dir *SharedDirectory }

func (*LinuxRosettaDirectoryShare) directoryShare() {}

func (s *LinuxRosettaDirectoryShare) directory() *SharedDirectory { return s.dir }

// NewLinuxRosettaDirectoryShare returns it.
func NewLinuxRosettaDirectoryShare() (*LinuxRosettaDirectoryShare, error) {
	if a := LinuxRosettaDirectoryShareAvailability(); a != LinuxRosettaAvailabilityInstalled {
		return nil, &NSError{Domain: "VZErrorDomain", Code: 1, LocalizedDescription: fmt.Sprintf("Rosetta is not there (%d)", a)}
	}
	return &LinuxRosettaDirectoryShare{&SharedDirectory{rosettaDir(), true}}, nil
}

// SetOptions sets where the interpreter looks for the daemon, which here it does not.
func (s *LinuxRosettaDirectoryShare) SetOptions(options LinuxRosettaCachingOptions) {}

// LinuxRosettaCachingOptions are such options.
type LinuxRosettaCachingOptions interface{ linuxRosettaCachingOptions() }

// LinuxRosettaUnixSocketCachingOptions name a unix socket.
type LinuxRosettaUnixSocketCachingOptions struct{}

func (*LinuxRosettaUnixSocketCachingOptions) linuxRosettaCachingOptions() {}

// NewLinuxRosettaUnixSocketCachingOptions returns them.
func NewLinuxRosettaUnixSocketCachingOptions(path string) (*LinuxRosettaUnixSocketCachingOptions, error) {
	const longest = 108 // sockaddr_un's in Linux
	if len(path) > longest {
		return nil, fmt.Errorf("path length exceeds maximum allowed length of %d", longest)
	}
	return &LinuxRosettaUnixSocketCachingOptions{}, nil
}
