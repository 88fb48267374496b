/* LD_PRELOAD: keeps beside a folder what a power cut would leave of it.
 *
 * FORGETFUL_DISK_ROOT is the folder, FORGETFUL_DISK_SHADOW another, of objects, aside and tree. The shadow
 * gets what is synced:
 *   a file's fsync or fdatasync: its content of that moment, under its name of that moment (as ext4 does for
 *   a new file);
 *   a folder's fsync: its names. A file in the folder that was never synced is empty there, and what was
 *   removed is gone.
 * Everything else is forgotten. To cut the power, kill every process, and put the shadow's `tree` in the
 * folder's place.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_long copies;

static int joined(char *out, const char *first, const char *second, const char *third) {
  return snprintf(out, PATH_MAX, "%s%s%s", first, second, third) < PATH_MAX;
}

static void make_parents(char *path) {
  for (char *at = path + 1; *at; at++)
    if (*at == '/') {
      *at = 0;
      mkdir(path, 0700);
      *at = '/';
    }
}

static void object_of(char *out, const char *shadow, const struct stat *about) {
  snprintf(out, PATH_MAX, "%s/objects/%lu", shadow, (unsigned long)about->st_ino);
}

/* Replaces `to` by another name of `from`. */
static void put_link(const char *from, char *to, const char *shadow) {
  char aside[PATH_MAX];
  snprintf(aside, sizeof aside, "%s/aside/%d-%ld", shadow, getpid(), atomic_fetch_add(&copies, 1));
  make_parents(to);
  if (link(from, aside) == 0) rename(aside, to);
  unlink(aside);
}

/* Redis's file is only appended to, and synced at every write: what is new goes after what is kept. */
static int keep_tail(const char *path, const char *relative, const char *shadow, const struct stat *about) {
  char object[PATH_MAX], name[PATH_MAX], block[1 << 16];
  struct stat before, named;
  size_t length = strlen(path);
  object_of(object, shadow, about);
  if (length < 4 || strcmp(path + length - 4, ".aof")) return 0;
  if (stat(object, &before) || before.st_size > about->st_size) return 0;
  int in = open(path, O_RDONLY | O_CLOEXEC), out = open(object, O_WRONLY | O_APPEND | O_CLOEXEC);
  ssize_t got = -1;
  if (in >= 0 && out >= 0 && lseek(in, before.st_size, SEEK_SET) == before.st_size)
    while ((got = read(in, block, sizeof block)) > 0)
      if (write(out, block, got) != got) break;
  if (in >= 0) close(in);
  if (out >= 0) close(out);
  if (stat(object, &before) || !joined(name, shadow, "/tree", relative)) return 0;
  if (stat(name, &named) || named.st_ino != before.st_ino) put_link(object, name, shadow);
  return got == 0;
}

static void keep_file(const char *path, const char *relative, const char *shadow, const struct stat *about) {
  if (keep_tail(path, relative, shadow, about)) return;
  char aside[PATH_MAX], object[PATH_MAX], name[PATH_MAX], block[1 << 16];
  snprintf(aside, sizeof aside, "%s/aside/%d-%ld", shadow, getpid(), atomic_fetch_add(&copies, 1));
  int in = open(path, O_RDONLY | O_CLOEXEC);
  int out = open(aside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  ssize_t got = -1;
  if (in >= 0 && out >= 0)
    while ((got = read(in, block, sizeof block)) > 0)
      if (write(out, block, got) != got) {
        got = -1;
        break;
      }
  if (in >= 0) close(in);
  if (out >= 0) close(out);
  if (got != 0) {
    unlink(aside);
    return;
  }
  object_of(object, shadow, about);
  rename(aside, object);
  if (joined(name, shadow, "/tree", relative)) put_link(object, name, shadow);
}

static void remove_all(const char *path) {
  DIR *folder = opendir(path);
  if (folder) {
    for (struct dirent *entry; (entry = readdir(folder));)
      if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..")) {
        char inner[PATH_MAX];
        if (snprintf(inner, sizeof inner, "%s/%s", path, entry->d_name) < PATH_MAX) remove_all(inner);
      }
    closedir(folder);
    rmdir(path);
  } else {
    unlink(path);
  }
}

static void keep_names(const char *path, const char *relative, const char *shadow) {
  char kept[PATH_MAX], from[PATH_MAX], to[PATH_MAX], object[PATH_MAX];
  struct stat about;
  if (!joined(kept, shadow, "/tree", relative)) return;
  snprintf(to, sizeof to, "%s/x", kept);
  make_parents(to);
  DIR *folder = opendir(kept);
  for (struct dirent *entry; folder && (entry = readdir(folder));) {
    if (!joined(from, path, "/", entry->d_name) || !joined(to, kept, "/", entry->d_name)) continue;
    if (lstat(from, &about) != 0 && errno == ENOENT) remove_all(to);
  }
  if (folder) closedir(folder);
  folder = opendir(path);
  for (struct dirent *entry; folder && (entry = readdir(folder));) {
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    if (!joined(from, path, "/", entry->d_name) || !joined(to, kept, "/", entry->d_name)) continue;
    if (lstat(from, &about)) continue;
    if (S_ISDIR(about.st_mode)) mkdir(to, 0700);
    if (!S_ISREG(about.st_mode)) continue;
    object_of(object, shadow, &about);
    if (access(object, F_OK) != 0) close(open(object, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    put_link(object, to, shadow);
  }
  if (folder) closedir(folder);
}

static void keep(int descriptor) {
  const char *root = getenv("FORGETFUL_DISK_ROOT"), *shadow = getenv("FORGETFUL_DISK_SHADOW");
  char link[64], path[PATH_MAX];
  struct stat about;
  if (!root || !shadow) return;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length <= 0) return;
  path[length] = 0;
  size_t prefix = strlen(root);
  if (strncmp(path, root, prefix) || (path[prefix] != '/' && path[prefix] != 0)) return;
  if (fstat(descriptor, &about)) return;
  if (S_ISREG(about.st_mode) && about.st_nlink > 0) keep_file(path, path + prefix, shadow, &about);
  if (S_ISDIR(about.st_mode)) keep_names(path, path + prefix, shadow);
}

#define SYNCING(name)                                              \
  int name(int descriptor) {                                       \
    static int (*real)(int);                                       \
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, #name);       \
    int result = real(descriptor), number = errno;                 \
    if (result == 0) keep(descriptor);                             \
    errno = number;                                                \
    return result;                                                 \
  }

SYNCING(fsync)
SYNCING(fdatasync)
