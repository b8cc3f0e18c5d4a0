package main

import (
	"bytes"
	"io"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// image writes a container image with the program alone, as `docker load` and `podman load` read it. Images of servers
// take the program from it: COPY --from=handfast:VERSION /usr/bin/handfast /usr/bin/
func (r *release) image(arch string, files []file) error {
	var layer bytes.Buffer
	inside := []file{{path: "/tmp", mode: os.ModeDir}} // where the admin socket is, for users other than root
	for _, f := range files {
		if f.path == programPath {
			inside = append(inside, f)
		}
	}
	if err := r.tar(&layer, "", inside); err != nil {
		return err
	}
	packed, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		return err
	}
	image, err := mutate.AppendLayers(empty.Image, packed)
	if err != nil {
		return err
	}
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		Architecture: arch, OS: "linux", Created: v1.Time{Time: r.time},
		Config: v1.Config{
			Entrypoint: []string{programPath}, StopSignal: "SIGTERM",
			// Status 1 until each slot has a worker.
			Healthcheck: &v1.HealthConfig{Test: []string{"CMD", programPath, "status", "--ready"}, Interval: 10e9, StartPeriod: 60e9},
			Labels: map[string]string{
				"org.opencontainers.image.version":  r.version,
				"org.opencontainers.image.licenses": "MIT",
			},
		},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: diffIDs(image)},
	})
	if err != nil {
		return err
	}
	tag, err := name.NewTag("handfast:"+r.version, name.WithDefaultRegistry("localhost"))
	if err != nil {
		return err
	}
	return tarball.WriteToFile(r.path(arch, ".image.tar"), tag, image)
}

func diffIDs(image v1.Image) []v1.Hash {
	config, err := image.ConfigFile()
	if err != nil {
		return nil
	}
	return config.RootFS.DiffIDs
}
