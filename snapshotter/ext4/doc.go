// Package ext4 writes and reads ext4 images in user space: no mount, no loop
// device, no privilege and no external program, on any operating system.
//
//   - LayerWriter turns the tar stream of one OCI layer into a read-only image
//     in a single pass. The same tar gives the same bytes.
//   - CreateEmpty makes a sparse writable image with a journal.
//   - Open reads an image, whoever made it, as an fs.FS.
//
// It is not a file system: an image is written once, front to back, and never
// changed afterwards.
//
// The layout of a layer's image, in blocks of 4096 bytes:
//
//	0            superblock
//	1 …          group descriptors (written last; a hole up to dataStart)
//	dataStart …  contents of files, in the tar's order, one run for each file
//	             extended attribute blocks, directories, long symlinks
//	             extent blocks of files in more than four pieces
//	             inode tables of all groups, then block and inode bitmaps
//
// Everything whose size depends on the whole tar stands at the end, so that the
// contents need not be kept; flex_bg allows inode tables and bitmaps anywhere.
package ext4
