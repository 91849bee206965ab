//! The names that llama.cpp and ggml give their types of files and tensors.

/// llama.cpp's name of a file type: the words in the order of `enum llama_ftype`. Retired ones are named too:
/// old servers still serve such files.
pub(super) fn file_type(kind: u64) -> Option<&'static str> {
    // Set where a quantiser guessed the type from the tensors.
    const GUESSED: u64 = 1024;
    const NAMES: &str = "F32 F16 Q4_0 Q4_1 Q4_1_F16 Q4_2 Q4_3 Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L \
        Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS Q2_K_S IQ3_XS IQ3_XXS IQ1_S IQ4_NL \
        IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16 Q4_0_4_4 Q4_0_4_8 Q4_0_8_8 TQ1_0 TQ2_0 \
        MXFP4_MOE NVFP4 Q1_0 Q2_0";
    NAMES.split(' ').nth(usize::try_from(kind & !GUESSED).ok()?)
}

/// ggml's name of a tensor type: the words in the order of `enum ggml_type`.
pub(super) fn tensor_type(kind: u32) -> Option<&'static str> {
    const NAMES: &str = "F32 F16 Q4_0 Q4_1 Q4_2 Q4_3 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K \
        IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M \
        BF16 Q4_0_4_4 Q4_0_4_8 Q4_0_8_8 TQ1_0 TQ2_0 IQ4_NL_4_4 IQ4_NL_4_8 IQ4_NL_8_8 MXFP4 \
        NVFP4 Q1_0 Q2_0";
    NAMES.split(' ').nth(usize::try_from(kind).ok()?)
}
