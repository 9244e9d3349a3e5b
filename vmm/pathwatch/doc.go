// Package pathwatch sees what is done to files of shared directories that somebody else serves, such
// as Virtualization.framework. It is the most of a vmm.ShareWatcher for a driver of such a kind.
//
// A source (FSEvents on macOS, else fsnotify) hints that there may be something else at a path. What
// it says of how is not used: FSEvents' flags add up over time, and what the guest does to a file to
// raise an event must not be told to it again. Instead the file's state is compared with that at the
// time when it was told last: whether it is there, which one it is, and of files the size and the
// time of the last change. So a change of attributes alone may not be told.
package pathwatch
