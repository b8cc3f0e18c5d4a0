// Command dist builds what people install: for each processor a static program with its version in it, as .tar.gz, .deb,
// .rpm and container image, a list of what is inside (CycloneDX), and checksums of them all.
//
//	go -C cmd/dist run . -o /tmp/handfast
//
// The same commit gives the same bytes: all times are the commit's (or SOURCE_DATE_EPOCH's), and no path of the machine
// that builds is in them.
package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	root := flag.String("root", "../..", "where handfast's sources are")
	out := flag.String("o", "../../dist", "where to put what is built; what is there already goes")
	arches := flag.String("arch", "amd64,arm64", "processors, as Go names them")
	version := flag.String("version", "", "in place of the one that CHANGELOG.md and git tell")
	flag.Parse()
	if err := run(*root, *out, *version, strings.Split(*arches, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "dist:", err)
		os.Exit(1)
	}
}

// A release is what is built from one commit.
type release struct {
	version string    // without a v: 0.1.0, or 0.1.0-dev.20261127.1a2b3c4d5e6f between releases
	time    time.Time // of all files
	root    string    // handfast's sources
	work    string    // a directory for what is only needed meanwhile
	out     string
}

func run(root, out, version string, arches []string) error {
	work, err := os.MkdirTemp("", "handfast-dist-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	r := release{root: root, work: work, out: out, version: version}
	if r.time, err = commitTime(root); err != nil {
		return err
	}
	if r.version == "" {
		if r.version, err = commitVersion(root, r.time); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, arch := range arches {
		if err := r.build(arch); err != nil {
			return fmt.Errorf("%s: %w", arch, err)
		}
	}
	return r.checksums()
}

// build makes all that there is for one processor.
func (r *release) build(arch string) error {
	program, err := r.compile(arch)
	if err != nil {
		return err
	}
	files, err := r.files(program)
	if err != nil {
		return err
	}
	for _, make := range []func(arch string, files []file) error{r.archive, r.packages, r.image, r.contents} {
		if err := make(arch, files); err != nil {
			return err
		}
	}
	return nil
}

// path of a file that is built: handfast_0.1.0_linux_amd64 and the suffix.
func (r *release) path(arch, suffix string) string {
	return filepath.Join(r.out, "handfast_"+r.version+"_linux_"+arch+suffix)
}

// compile returns the path of the program.
func (r *release) compile(arch string) (string, error) {
	program, err := filepath.Abs(filepath.Join(r.work, arch, "handfast"))
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.release="+r.version, "-o", program, "./cmd/handfast")
	build.Dir = r.root
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=-mod=readonly")
	build.Stderr = os.Stderr
	return program, build.Run()
}

// commitTime is SOURCE_DATE_EPOCH, or when the commit was made.
func commitTime(root string) (time.Time, error) {
	seconds := os.Getenv("SOURCE_DATE_EPOCH")
	if seconds == "" {
		var err error
		if seconds, err = git(root, "log", "-1", "--format=%ct"); err != nil {
			return time.Time{}, fmt.Errorf("no commit to take the time of files from; set SOURCE_DATE_EPOCH: %w", err)
		}
	}
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(n, 0).UTC(), nil
}

var newest = regexp.MustCompile(`(?m)^## (\d+\.\d+\.\d+)$`)

// commitVersion is the newest version of CHANGELOG.md, if the commit has its tag; else one that sorts before it.
func commitVersion(root string, made time.Time) (string, error) {
	changes, err := os.ReadFile(filepath.Join(root, "CHANGELOG.md"))
	if err != nil {
		return "", err
	}
	found := newest.FindSubmatch(changes)
	if found == nil {
		return "", errors.New("CHANGELOG.md has no version; give one by -version")
	}
	version := string(found[1])
	tags, err := git(root, "tag", "--points-at", "HEAD")
	if err != nil {
		return "", fmt.Errorf("no commit to tell the version from; give one by -version: %w", err)
	}
	if slices.Contains(strings.Fields(tags), "v"+version) {
		return version, nil
	}
	commit, err := git(root, "rev-parse", "--short=12", "HEAD")
	return version + "-dev." + made.Format("20060102") + "." + commit, err
}

func git(root string, args ...string) (string, error) {
	said, err := exec.Command("git", append([]string{"-C", root}, args...)...).Output()
	return strings.TrimSpace(string(said)), err
}

// checksums writes SHA256SUMS, which `sha256sum --check` reads.
func (r *release) checksums() error {
	names, err := filepath.Glob(filepath.Join(r.out, "handfast_*"))
	if err != nil {
		return err
	}
	var sums bytes.Buffer
	for _, name := range names { // sorted
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(data), filepath.Base(name))
	}
	return os.WriteFile(filepath.Join(r.out, "SHA256SUMS"), sums.Bytes(), 0o644)
}
