package snapshotter

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/applevm/applevm/manifest"
	"github.com/applevm/applevm/snapshotter/changes"
	"github.com/applevm/applevm/snapshotter/ext4"
	"github.com/applevm/applevm/snapshotter/union"
)

// sealFile in a snapshot's directory says that the snapshot's layer holds the
// changes of its writable image: of an active snapshot's, that Commit was cut off
// before the database recorded it.
const sealFile = "seal"

// sealed is a container's changes as a layer, for Commit.
type sealed struct {
	id     string // the snapshot's
	diffID digest.Digest
	image  string  // the writable image that was read
	read   version // of it
}

// seal makes a layer of what a container has changed in the snapshot key. It
// returns nil for a snapshot that no container has run on.
func (s *Snapshotter) seal(ctx context.Context, key string) (*sealed, error) {
	id, info, err := s.find(ctx, key)
	if err != nil || info.Kind != snapshots.KindActive {
		return nil, err // the transaction says what is wrong
	}
	dir := s.snapshotDir(id)
	up, err := s.contentsOf(ctx, id, info)
	if err != nil || up.writable == "" {
		return nil, err
	}
	if own, err := readDiffID(dir); err != nil {
		return nil, err
	} else if own != "" {
		return nil, fmt.Errorf("a layer was applied to it and a container has run on it: %w", errdefs.ErrFailedPrecondition)
	}
	out := sealed{id: id, image: up.writable}
	if out.read, err = writtenAt(up.writable); err != nil {
		return nil, err
	}
	f, err := s.layers.create()
	if err != nil {
		return nil, err
	}
	defer s.layers.discard(f)
	err = s.changes(contents{layers: up.layers}, up, func(upper, lower []union.Place) error {
		out.diffID, err = writeLayer(ctx, f, upper, lower)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make a layer of its changes: %w", err)
	}
	// Until the transaction only this process knows that the image is used.
	return &out, s.layers.publishAs(f, imageName(out.diffID), id, func() error { return nil })
}

func (s *Snapshotter) find(ctx context.Context, key string) (id string, info snapshots.Info, err error) {
	err = s.meta.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return id, info, err
}

// record names the layer in the snapshot's directory, while the transaction runs
// that commits the snapshot.
func (c *sealed) record(id, dir string) error {
	if id != c.id {
		return fmt.Errorf("the snapshot was replaced meanwhile, try again: %w", errdefs.ErrUnavailable)
	}
	if now, err := writtenAt(c.image); err != nil {
		return err
	} else if now != c.read {
		return fmt.Errorf("a container has written to it meanwhile: stop the container: %w", errdefs.ErrUnavailable)
	}
	if err := writeLine(dir, sealFile, c.diffID.String()); err != nil {
		return err
	}
	return writeDiffID(dir, c.diffID)
}

// breakSeal takes back what Commit has done so far for a snapshot that it could not
// commit. Another Commit may have done so, or a Remove have taken it away.
func (s *Snapshotter) breakSeal(ctx context.Context, c *sealed, key string) error {
	dir := s.snapshotDir(c.id)
	err := s.meta.WithTransaction(ctx, true, func(ctx context.Context) error {
		id, info, _, err := storage.GetInfo(ctx, key)
		if err != nil || id != c.id || info.Kind != snapshots.KindActive {
			return nil
		}
		return unseal(dir)
	})
	s.layers.giveUp(imageName(c.diffID), c.id, dir)
	return err
}

// checkSeal makes the seal of a snapshot agree with the database, after a crash.
func (s *Snapshotter) checkSeal(ctx context.Context, id, key string) error {
	dir := s.snapshotDir(id)
	if _, err := os.Lstat(filepath.Join(dir, sealFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	info, err := s.Stat(ctx, key)
	if err != nil {
		return err
	}
	if info.Kind == snapshots.KindActive {
		return unseal(dir)
	}
	return os.Remove(filepath.Join(dir, sealFile))
}

// unseal takes back what record has done for a snapshot that stayed active.
func unseal(dir string) error {
	path := filepath.Join(dir, sealFile)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// In this order: as long as there is a seal, this is done again.
	err := os.Remove(filepath.Join(dir, diffIDFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	return os.Remove(path)
}

// giveUp takes a snapshot off an image's users that its directory does not name.
func (l *layerStore) giveUp(name, id, dir string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if names, err := imagesOf(dir); err != nil || slices.Contains(names, name) {
		return
	}
	delete(l.users[name], id)
	l.collect(name)
}

// writeLayer writes to f, as a layer's image, how upper differs from lower, and
// returns the digest of the layer's tar, which is never stored. Holes of files
// stay holes.
func writeLayer(ctx context.Context, f *os.File, upper, lower []union.Place) (digest.Digest, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	written := make(chan struct{})
	go func() {
		defer close(written)
		buf := bufio.NewWriterSize(w, 1<<20)
		err := changes.Write(ctx, buf, upper, lower, changes.Options{Sparse: true})
		w.CloseWithError(errors.Join(err, buf.Flush()))
	}()
	defer func() { // before the images are closed
		r.CloseWithError(errors.New("the image is not written on"))
		<-written
	}()
	hash := sha256.New()
	lw := ext4.NewLayerWriter(f, ext4.LayerOptions{Root: manifest.LayerRoot})
	if err := lw.ReadTar(ctx, bufio.NewReaderSize(io.TeeReader(r, hash), 1<<17)); err != nil {
		return "", err
	}
	if _, err := lw.Finish([sha256.Size]byte(hash.Sum(nil))); err != nil {
		return "", err
	}
	return digest.NewDigest(digest.SHA256, hash), nil
}
