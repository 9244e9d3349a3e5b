package vmm

import "context"

// ShareWatcher is a machine that sees what others than its guest do to the files that it
// shares, and can have the guest's kernel tell its processes of that (inotify(7)). A driver
// may lack this.
type ShareWatcher interface {
	// WatchesPaths tells that files are named by their paths in a share, because the shares'
	// server knows nothing of the guest's numbers for them.
	WatchesPaths() bool
	// WatchShares says which files of the shares are watched from now on, by the shares' tags.
	// What is no file of a share is passed over. It returns an error if not all can be watched.
	WatchShares(files map[string]WatchedFiles) error
	// ShareChanges waits for changes of the files that are watched. It returns ctx's
	// error if that ends first. One caller at a time.
	ShareChanges(ctx context.Context) (ShareChanges, error)
}

// WatchedFiles are files of one share, in one of two ways.
type WatchedFiles struct {
	// Nodes are the numbers by which the guest's file system knows them, the node IDs of the FUSE
	// protocol.
	Nodes []uint64
	// Paths are relative to the share's directory, which is ".", and clean.
	Paths []string
}

// ShareChanges are changes of one share, in their order.
type ShareChanges struct {
	Tag string
	// Group is that of the requests by which the guest does once more what has happened: for
	// each kind of change this number and the kind's. The share answers them as if they were
	// executed.
	Group   uint32
	Changes []ShareChange
	// Paths are, with WatchesPaths, the places where there may be something else now: files that
	// are watched, or in a directory that is.
	Paths []string
	// Lost is how many changes there were beside, of any share.
	Lost int
}

// ShareChange is a change of a file.
type ShareChange struct {
	What ShareEvent
	// File is the directory, and Name the file in it; with no name it is the file itself.
	File uint64
	Name string
	// Type is that of the file that has appeared, as in stat(2)'s st_mode.
	Type uint32
	// Attributes says that only attributes were changed, not the content.
	Attributes bool
}

// ShareEvent is a kind of change.
type ShareEvent uint32

// What can happen to a file.
const (
	ShareChanged  ShareEvent = iota // its content or its attributes
	ShareAppeared                   // there is another of the name now
	ShareFileGone                   // there is none of the name any more; it was no directory
	ShareDirGone                    // it was a directory

	ShareEvents // how many kinds there are
)
