package dev.loci;

/** Told after each batch; false stops the work, which then ends in a LociException with the status CANCELLED, unless it is done. */
public interface Progress {
    boolean onProgress(long done, long total);
}
