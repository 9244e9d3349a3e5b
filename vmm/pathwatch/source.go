package pathwatch

// source hints at changes. Its hints are absolute paths; an empty one says that some were lost.
type source interface {
	// watch sets what is to be watched: directories, with what is directly in them, and files, by
	// the absolute paths of the roots that they are below, all without symbolic links.
	watch(places map[string][]string) error
	hints() <-chan string
	close()
}

// maxHints is how many hints may wait.
const maxHints = 1024
