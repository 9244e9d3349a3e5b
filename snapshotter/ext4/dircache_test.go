package ext4

import "testing"

// TestLargeDirectoryStaysCached: small directories do not push out a large one,
// nor a large one the small ones.
func TestLargeDirectoryStaysCached(t *testing.T) {
	var c dirCache
	small := &dirList{ino: 2, entries: make([]dirent, 3)}
	large := &dirList{ino: 3, entries: make([]dirent, dirCacheEntries+1)}
	c.put(small)
	c.put(large)
	c.put(&dirList{ino: 4, entries: make([]dirent, 3)})
	for _, want := range []*dirList{small, large} {
		if c.get(want.ino) != want {
			t.Errorf("directory %d was read and is not cached", want.ino)
		}
	}
	if l := c.get(9); l != nil {
		t.Errorf("directory %d for one never read", l.ino)
	}
}
