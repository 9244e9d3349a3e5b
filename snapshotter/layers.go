package snapshotter

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/applevm/applevm/manifest"
)

const (
	imageSuffix = ".ext4"
	tempPrefix  = "tmp-"
	// diffIDFile in a snapshot's directory holds the digest of the layer that
	// was applied to the snapshot.
	diffIDFile = "diffid"
	// mergedFile in a snapshot's directory holds the name of the image of all its
	// layers merged; see merge.go.
	mergedFile = "merged"
)

// layerStore keeps the images of layers, each once, for as long as a snapshot
// names it.
type layerStore struct {
	dir string

	mu sync.Mutex
	// users are the snapshots that name an image, by the image's file name.
	users map[string]map[string]struct{}
	// temps are the images that are being written.
	temps map[string]struct{}
}

func newLayerStore(dir string) *layerStore {
	return &layerStore{
		dir:   dir,
		users: make(map[string]map[string]struct{}),
		temps: make(map[string]struct{}),
	}
}

// path returns the path of a layer's image.
func (l *layerStore) path(diffID digest.Digest) string {
	return filepath.Join(l.dir, imageName(diffID))
}

// imageName is the file name of a layer's image.
func imageName(diffID digest.Digest) string {
	return diffID.Algorithm().String() + "-" + diffID.Encoded() + imageSuffix
}

// layer describes a layer for a manifest.
func (l *layerStore) layer(diffID digest.Digest) manifest.Layer {
	return manifest.Layer{DiffID: diffID.String(), Path: l.path(diffID), FSType: imageType}
}

// create returns an empty file for an image. The caller passes it to publish
// and, in any case, to discard.
func (l *layerStore) create() (*os.File, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f, err := os.CreateTemp(l.dir, tempPrefix+"*"+imageSuffix)
	if err != nil {
		return nil, err
	}
	l.temps[f.Name()] = struct{}{}
	return f, nil
}

// discard closes and removes a file that create returned, unless publish has
// already given it its name.
func (l *layerStore) discard(f *os.File) {
	f.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	os.Remove(f.Name())
	delete(l.temps, f.Name())
}

// publish makes the image in f that of the layer diffID, and the snapshot in
// dir its user. If the layer has an image already, that one is kept: the same
// layer gives the same image, and a running machine may have it open.
func (l *layerStore) publish(f *os.File, diffID digest.Digest, id, dir string) error {
	return l.publishAs(f, imageName(diffID), id, func() error { return writeDiffID(dir, diffID) })
}

// publishAs gives the image in f its name, and the snapshot id to it as a user
// once use has recorded that.
func (l *layerStore) publishAs(f *os.File, name, id string, use func() error) error {
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	path := filepath.Join(l.dir, name)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := os.Rename(f.Name(), path); err != nil {
			return err
		}
		if err := syncDir(l.dir); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	err := use()
	if err != nil {
		l.collect(name)
		return err
	}
	l.note(name, id)
	return nil
}

// has reports whether an image exists.
func (l *layerStore) has(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.users[name]) > 0
}

// adopt makes the snapshot in dir a user of the layer diffID if the layer has
// an image. It reports whether it has.
func (l *layerStore) adopt(diffID digest.Digest, id, dir string) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	name := imageName(diffID)
	if len(l.users[name]) == 0 {
		return false, nil
	}
	if err := writeDiffID(dir, diffID); err != nil {
		return true, err
	}
	l.note(name, id)
	return true, nil
}

// note records that the snapshot id names an image.
func (l *layerStore) note(name, id string) {
	if l.users[name] == nil {
		l.users[name] = make(map[string]struct{})
	}
	l.users[name][id] = struct{}{}
}

// noteAll records which images the snapshot id in dir names.
func (l *layerStore) noteAll(id, dir string) error {
	names, err := imagesOf(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		l.note(n, id)
	}
	return nil
}

// imagesOf returns the names of the images that the snapshot in dir names.
func imagesOf(dir string) ([]string, error) {
	var names []string
	diffID, err := readDiffID(dir)
	if err != nil {
		return nil, err
	}
	if diffID != "" {
		names = append(names, imageName(diffID))
	}
	merged, err := readMerged(dir)
	if err != nil {
		return nil, err
	}
	if merged != "" {
		names = append(names, merged)
	}
	return names, nil
}

// retire renames the directory of a snapshot that the database no longer has,
// so that nothing can be applied to it any more, and drops its layer. It
// returns the new path, empty if there was no directory.
func (l *layerStore) retire(id, dir string) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	names, err := imagesOf(dir)
	if err != nil {
		return "", err
	}
	dead := filepath.Join(filepath.Dir(dir), deadPrefix+id+"-"+rand.Text())
	if err := os.Rename(dir, dead); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	for _, n := range names {
		delete(l.users[n], id)
		l.collect(n)
	}
	return dead, nil
}

// collect removes an image that no snapshot names.
func (l *layerStore) collect(name string) {
	if len(l.users[name]) > 0 {
		return
	}
	delete(l.users, name)
	os.Remove(filepath.Join(l.dir, name)) // what cannot be removed is left for cleanup
}

// cleanup removes images that no snapshot names and files that nobody writes.
func (l *layerStore) cleanup() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(l.dir, e.Name())
		_, used := l.users[e.Name()]
		_, open := l.temps[path]
		if !used && !open {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}

// readDiffID returns the layer that was applied to the snapshot in dir, empty
// if there is none.
func readDiffID(dir string) (digest.Digest, error) {
	b, err := os.ReadFile(filepath.Join(dir, diffIDFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	diffID, err := digest.Parse(strings.TrimSpace(string(b)))
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Join(dir, diffIDFile), err)
	}
	return diffID, nil
}

// writeDiffID records the layer of the snapshot in dir, atomically and for good.
func writeDiffID(dir string, diffID digest.Digest) error {
	return writeLine(dir, diffIDFile, diffID.String())
}

// writeLine makes a file of one line in a snapshot's directory.
func writeLine(dir, file, line string) error {
	f, err := os.CreateTemp(dir, file+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // no effect after the rename
	_, err = f.WriteString(line + "\n")
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, file))
	}
	if err == nil {
		err = syncDir(dir)
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
