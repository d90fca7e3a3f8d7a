// For Linux, where a module map cannot name a header in the search path itself.
#include <loci.h>
