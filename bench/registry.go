package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// localRegistry is a registry of this process on the loopback interface, which
// holds its images in memory.
type localRegistry struct {
	addr   string
	server *http.Server
	done   chan error
}

func startRegistry() (*localRegistry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &localRegistry{
		addr:   l.Addr().String(),
		server: &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: time.Minute},
		done:   make(chan error, 1),
	}
	go func() { r.done <- r.server.Serve(l) }()
	return r, nil
}

func (r *localRegistry) close() error {
	err := r.server.Close()
	if serr := <-r.done; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

// push gives the registry the image of an archive and returns its reference. The
// library's own client would bring Docker's configuration with it.
func (r *localRegistry) push(ctx context.Context, archive, repo string) (string, error) {
	img, err := tarball.ImageFromPath(archive, nil)
	if err != nil {
		return "", err
	}
	layers, err := img.Layers()
	if err != nil {
		return "", err
	}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			return "", err
		}
		blob, err := l.Compressed()
		if err != nil {
			return "", err
		}
		if err := r.pushBlob(ctx, repo, digest, blob); err != nil {
			return "", err
		}
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return "", err
	}
	digest, err := img.ConfigName()
	if err != nil {
		return "", err
	}
	if err := r.pushBlob(ctx, repo, digest, bytes.NewReader(config)); err != nil {
		return "", err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return "", err
	}
	mediaType, err := img.MediaType()
	if err != nil {
		return "", err
	}
	err = r.send(ctx, http.MethodPut, repo+"/manifests/latest", string(mediaType), bytes.NewReader(manifest))
	return r.addr + "/" + repo + ":latest", err
}

// pushBlob closes blob if it can be closed, as HTTP clients do.
func (r *localRegistry) pushBlob(ctx context.Context, repo string, digest v1.Hash, blob io.Reader) error {
	return r.send(ctx, http.MethodPost, repo+"/blobs/uploads/?digest="+digest.String(), "application/octet-stream", blob)
}

func (r *localRegistry) send(ctx context.Context, method, path, contentType string, body io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+r.addr+"/v2/"+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("push %s: %w", path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("push %s: %s: %s", path, resp.Status, bytes.TrimSpace(text))
	}
	return nil
}
