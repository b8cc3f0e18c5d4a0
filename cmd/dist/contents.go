package main

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"fmt"
	"os"
	"time"

	"github.com/CycloneDX/cyclonedx-go"
	"github.com/google/uuid"
)

// contents writes what is in the program, from what the Go toolchain has written into it: a CycloneDX list.
func (r *release) contents(arch string, files []file) error {
	var program []byte
	for _, f := range files {
		if f.path == programPath {
			program = f.data
		}
	}
	info, err := buildinfo.Read(bytes.NewReader(program))
	if err != nil {
		return err
	}
	list := cyclonedx.NewBOM()
	sum := sha256.Sum256(program)
	list.SerialNumber = uuid.NewSHA1(uuid.NameSpaceOID, sum[:]).URN() // the same for the same program
	list.Metadata = &cyclonedx.Metadata{
		Timestamp: r.time.Format(time.RFC3339),
		Component: &cyclonedx.Component{Type: cyclonedx.ComponentTypeApplication, BOMRef: "handfast", Name: "handfast", Version: r.version,
			Licenses: &cyclonedx.Licenses{{License: &cyclonedx.License{ID: "MIT"}}},
			Hashes:   &[]cyclonedx.Hash{{Algorithm: cyclonedx.HashAlgoSHA256, Value: fmt.Sprintf("%x", sum)}}},
	}
	components := []cyclonedx.Component{library("std", info.GoVersion)}
	for _, module := range info.Deps {
		if module.Replace != nil {
			module = module.Replace
		}
		components = append(components, library(module.Path, module.Version))
	}
	list.Components = &components
	out, err := os.Create(r.path(arch, ".cdx.json"))
	if err != nil {
		return err
	}
	if err := cyclonedx.NewBOMEncoder(out, cyclonedx.BOMFileFormatJSON).SetPretty(true).Encode(list); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

func library(path, version string) cyclonedx.Component {
	url := "pkg:golang/" + path + "@" + version
	return cyclonedx.Component{Type: cyclonedx.ComponentTypeLibrary, BOMRef: url, Name: path, Version: version, PackageURL: url}
}
