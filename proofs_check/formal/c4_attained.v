(* C4's band cannot be improved: for every E >= 2 and m >= 1 there are a batch of multiplicity m(2u) <= m and an expert
   that is within 1 - 1/E of its target and, one step of the sign rule later, away from it by the whole sharp band
   m (E - 1) - (1 - 1/E). So no smaller b >= 1 - 1/E that depends on m and E only is absorbing.

   K = 1. Each expert but the first is the home of m (E - 1) - 1 tokens that never leave it and of m movers that are
   indifferent between it and the first expert, which has them all at first, one token above L; after one step it has
   none. All other crossing values of a pair are different multiples of 3, and 2u = 2. *)

From mathcomp Require Import all_ssreflect ssralg ssrnum ssrint zify ring.
From alflb Require Import definitions topk c4_absorbing_band.
Set Implicit Arguments.
Unset Strict Implicit.
Unset Printing Implicit Defensive.
Import Order.TTheory GRing.Theory Num.Theory.
Local Open Scope ring_scope.

(* Values of an injective function in an interval are few. *)
Lemma card_values (I : finType) (S : {set I}) (f : I -> nat) low len :
  {in S &, injective f} -> (forall i, i \in S -> (low <= f i < low + len)%N) -> (#|S| <= len)%N.
Proof.
move=> f_inj f_in; rewrite cardE -(size_map f) -(size_iota low len); apply: uniq_leq_size.
  by rewrite map_inj_in_uniq ?enum_uniq // => i j; rewrite !mem_enum; apply: f_inj.
by move=> _ /mapP[i + ->]; rewrite mem_enum mem_iota; apply: f_in.
Qed.

Section Attained.
Variables (F : realFieldType) (E m : nat).
Hypotheses (E_gt1 : (1 < E)%N) (m_gt0 : (0 < m)%N).
Definition residents := (m * (E - 1) - 1)%N.
Definition family := (residents + m)%N.
Definition T := (family * (E - 1))%N.
Implicit Types (i : 'I_T) (j k : 'I_E).

Definition home i : nat := (i %/ family).+1.
Definition place i : nat := (i %% family)%N.
Definition mover i : bool := (place i < m)%N.

(* The highest score of a token goes to its home and, for a mover, to the first expert too. *)
Definition liked i k : bool := (k == home i :> nat) || (k == 0%N :> nat) && mover i.
Definition dislike i k : nat := (i.+1 * k.+1)%N.
Definition whole_score i k : int := if liked i k then (T * E)%N%:Z else - (dislike i k)%:Z.
Definition tight_scores i k : F := (3%:Z * whole_score i k)%:~R.

Lemma family_gt0 : (0 < family)%N. Proof. by rewrite /family; lia. Qed.

Lemma home_lt i : (home i < E)%N.
Proof. by have := ltn_ord i; rewrite /home {2}/T mulnC -ltn_divLR ?family_gt0 //; lia. Qed.

Lemma token_eq i i' : home i = home i' -> place i = place i' -> i = i'.
Proof.
rewrite /home /place => -[h] p; apply/val_inj.
by rewrite /= (divn_eq i family) (divn_eq i' family) h p.
Qed.

Lemma dislike_bounds i k : (0 < dislike i k <= T * E)%N.
Proof. by rewrite /dislike muln_gt0 /= leq_mul. Qed.

Definition movers_of j := [set i | (home i == j :> nat) && mover i].
Definition residents_of j := [set i | (home i == j :> nat) && ~~ mover i].

Lemma card_movers_of j : (#|movers_of j| <= m)%N.
Proof.
apply: (@card_values _ _ place 0) => [i i'|i]; rewrite !inE; last by case/andP.
by case/andP=> /eqP hi _ /andP[/eqP hi' _]; apply: token_eq; rewrite hi.
Qed.

Lemma card_residents_of j : (#|residents_of j| <= residents)%N.
Proof.
apply: (@card_values _ _ place m) => [i i'|i]; rewrite !inE.
  by case/andP=> /eqP hi _ /andP[/eqP hi' _]; apply: token_eq; rewrite hi.
by rewrite /mover -leqNgt => /andP[_ ->]; rewrite addnC ltn_mod family_gt0.
Qed.

(* ---- no window of length 2 holds more than m *)
Lemma dislike_inj i i' j : dislike i j = dislike i' j -> i = i'.
Proof. by move/eqP; rewrite /dislike eqn_pmul2r // eqSS => /eqP/val_inj. Qed.

Lemma dislike_neq i j k : j != k -> dislike i j <> dislike i k.
Proof. by move=> jk /eqP; rewrite /dislike eqn_pmul2l // eqSS val_eqE (negPf jk). Qed.

Lemma dislike_diff_inj i i' j k : j != k ->
  (dislike i j)%:Z - (dislike i k)%:Z = (dislike i' j)%:Z - (dislike i' k)%:Z -> i = i'.
Proof.
move=> jk; have jk0 : j.+1%:Z - k.+1%:Z != 0.
  by apply: contraNneq jk => e; apply/eqP/val_inj => /=; lia.
by rewrite !PoszM -!mulrBr => /(mulIf jk0) [/val_inj].
Qed.

(* Two experts liked by one token are the first and its home. *)
Lemma liked_both i j k : j != k -> liked i k -> liked i j -> mover i /\ home i = maxn j k :> nat.
Proof.
have : (0 < home i)%N by []; rewrite /liked -val_eqE /=.
by case: (mover i); rewrite ?andbT ?andbF ?orbF; move: (home i) (val j) (val k) => h a b; lia.
Qed.

(* Tokens of one crossing value are one token, or movers of one home. *)
Lemma crossing_eq i i' j k : j != k ->
  whole_score i k - whole_score i j = whole_score i' k - whole_score i' j ->
  i = i' \/ [/\ mover i, mover i' & home i = home i'].
Proof.
move=> jk; rewrite /whole_score.
have [/andP[a0 a1] /andP[b0 b1]] := (dislike_bounds i k, dislike_bounds i j).
have [/andP[c0 c1] /andP[d0 d1]] := (dislike_bounds i' k, dislike_bounds i' j).
have same_k : dislike i k = dislike i' k -> i = i' := @dislike_inj i i' k.
have same_j : dislike i j = dislike i' j -> i = i' := @dislike_inj i i' j.
have apart := dislike_diff_inj (i := i) (i' := i') jk.
move: (dislike i k) (dislike i j) (dislike i' k) (dislike i' j) a0 a1 b0 b1 c0 c1 d0 d1 same_k same_j apart
  (@dislike_neq i j k jk) (@dislike_neq i' j k jk).
move: (T * E)%N => H a b c d; do 8![move=> ?] => same_k same_j apart ? ?.
case: ifP => ik; case: ifP => ij; case: ifP => i'k; case: ifP => i'j e; try by lia.
- have [mi hi] := liked_both jk ik ij; have [mi' hi'] := liked_both jk i'k i'j.
  by right; rewrite hi hi'.
- by left; apply: same_j; lia.
- by left; apply: same_k; lia.
by left; apply: apart; lia.
Qed.

Definition whole_crossing k j i : int := whole_score i k - whole_score i j.

Lemma crossingE k j i : crossing tight_scores k j i = (3%:Z * whole_crossing k j i)%:~R.
Proof. by rewrite /crossing /tight_scores -rmorphB mulrBr. Qed.

(* Multiples of 3 in a window of length 2 are equal. *)
Lemma window_eq a k j i i' : i \in window tight_scores a (2%:R * 1) k j ->
  i' \in window tight_scores a (2%:R * 1) k j -> whole_crossing k j i = whole_crossing k j i'.
Proof.
have gap x y : a <= (3%:Z * x)%:~R -> (3%:Z * y)%:~R <= a + 2%:R * 1 -> 3%:Z * y <= 3%:Z * x + 2%:Z.
  by move=> lo hi; rewrite -(ler_int F) rmorphD (le_trans hi) // mulr1 ler_add2r.
rewrite !inE !crossingE => /andP[lo hi] /andP[lo' hi'].
by have := gap _ _ lo hi'; have := gap _ _ lo' hi; lia.
Qed.

Lemma card_tight_window a k j : k != j -> (#|window tight_scores a (2%:R * 1) k j| <= m)%N.
Proof.
move=> kj; set W := window _ _ _ _ _; have [->|[i0 i0W]] := set_0Vmem W; first by rewrite cards0.
have same i : i \in W -> i = i0 \/ [/\ mover i, mover i0 & home i = home i0].
  by move=> iW; apply: (crossing_eq (j := j) (k := k)); [rewrite eq_sym | exact: window_eq iW i0W].
have [mover0|resident0] := boolP (mover i0).
  apply: leq_trans (card_movers_of (Ordinal (home_lt i0))); apply/subset_leq_card/subsetP=> i /same.
  by rewrite inE /= => -[->|[-> _ ->]]; rewrite ?mover0 eqxx.
apply: (@leq_trans #|[set i0]|); last by rewrite cards1.
by apply/subset_leq_card/subsetP=> i /same; rewrite inE => -[->|[_]]; rewrite ?eqxx // (negPf resident0).
Qed.

Lemma tight_multiplicity : (multiplicity tight_scores (2%:R * 1) <= m)%N.
Proof.
rewrite geq_max m_gt0 /=; apply/bigmax_leqP => k _; apply/bigmax_leqP => j kj.
by apply/bigmax_leqP => i _; apply: card_tight_window.
Qed.

(* ---- loads before and after one step from p = 0 *)
Local Notation A := (load 1 tight_scores).
Local Notation L := (even F T 1).
Local Notation zero := (fun _ : 'I_E => 0 : F).
Local Notation step := (sign_step 1 tight_scores L 1).
Definition first : 'I_E := Ordinal (ltnW E_gt1).

(* With K = 1, nobody stands before a pick. *)
Lemma picked_alone p i k : k \in picks 1 tight_scores p i -> forall j, ~~ beats (biased tight_scores p i) j k.
Proof. by rewrite inE ltnS leqn0 cards_eq0 => /eqP none j; have := in_set0 j; rewrite -none inE => ->. Qed.

Lemma score_home i k : tight_scores i k <= tight_scores i (Ordinal (home_lt i)).
Proof.
by rewrite ler_int ler_pmul2l // {2}/whole_score /liked /= eqxx /whole_score; case: ifP.
Qed.

Lemma score_liked i k j : liked i k -> ~~ liked i j -> tight_scores i j < tight_scores i k.
Proof.
move=> ik ij; rewrite ltr_int ltr_pmul2l // /whole_score ik (negPf ij).
by have := dislike_bounds i j; lia.
Qed.

Lemma first_picked i : first \in picks 1 tight_scores zero i -> mover i.
Proof.
move/picked_alone/(_ (Ordinal (home_lt i))); apply: contraNT => resident.
by rewrite /beats /biased !addr0 score_liked // /liked /= ?eqxx // negb_or negb_and resident.
Qed.

Lemma other_picked i k : k != first -> k \in picks 1 tight_scores zero i -> i \in residents_of k.
Proof.
move=> kf /picked_alone alone; have k0 : (0 < k)%N by rewrite lt0n; apply: contraNneq kf => k0; apply/eqP/val_inj.
rewrite inE eq_sym; apply/andP; split.
  apply: contraT => away; have := alone (Ordinal (home_lt i)).
  rewrite /beats /biased !addr0 score_liked // /liked /= ?eqxx // negb_or away negb_and.
  by rewrite -lt0n k0.
apply: contraT => /negPn mover_i; have := alone first; rewrite /beats /biased !addr0 k0.
have firstE : liked i first by rewrite /liked /= mover_i.
have [ik|ik] := boolP (liked i k); last by rewrite score_liked.
by rewrite /tight_scores /whole_score ik firstE eqxx orbT.
Qed.

Lemma load_other k : k != first -> (A zero k <= residents)%N.
Proof.
move=> kf; apply: leq_trans (card_residents_of k); apply/subset_leq_card/subsetP=> i.
by rewrite in_set; apply: other_picked.
Qed.

Lemma load_first_le : (A zero first <= m * (E - 1))%N.
Proof.
have -> : (E - 1 = #|[set~ first]|)%N by rewrite cardsC1 card_ord subn1.
apply: (card_cover (W := movers_of)) => [i|j _]; last exact: card_movers_of.
rewrite in_set => /first_picked mover_i; exists (Ordinal (home_lt i)); first by rewrite !inE.
by rewrite inE eqxx.
Qed.

Lemma load_first : A zero first = (m * (E - 1))%N.
Proof.
apply/eqP; rewrite eqn_leq load_first_le /=.
have := sum_loads tight_scores (ltnW E_gt1) zero; rewrite (bigD1 first) //= mul1n => total.
have : (\sum_(k | k != first) A zero k <= (E - 1) * residents)%N.
  apply: (@leq_trans (\sum_(k | k != first) residents)); first exact: leq_sum load_other.
  by rewrite sum_nat_const (cardC1 first) card_ord subn1.
have -> : (m * (E - 1) = T - (E - 1) * residents)%N by rewrite /T /family mulnDl [((E - 1) * _)%N]mulnC addKn.
by move=> few; rewrite leq_subLR addnC; apply: leq_trans (leq_add (leqnn _) few); rewrite total.
Qed.

Lemma residentsE : residents%:R = m%:R * (E%:R - 1) - 1 :> F.
Proof. by rewrite /residents natrB ?natrM ?natrB //; [lia | nia]. Qed.

Lemma targetE k : L k = m%:R * (E%:R - 1) - (1 - E%:R^-1) :> F.
Proof.
have E0 : E%:R != 0 :> F by rewrite pnatr_eq0; lia.
by rewrite /even mul1n /T /family natrM natrD residentsE natrB ?(ltnW E_gt1) //; field.
Qed.

Lemma inv_bounds : 0 < E%:R^-1 :> F /\ E%:R^-1 < 1 :> F.
Proof. by rewrite invr_gt0 ltr0n invf_lt1 ?ltr0n ?ltr1n // (ltnW E_gt1). Qed.

Lemma sg_first : Num.sg (L first - (A zero first)%:R) = -1 :> F.
Proof.
have [_ lt1] := inv_bounds; apply: ltr0_sg.
rewrite targetE load_first natrM natrB ?(ltnW E_gt1) // addrAC subrr add0r oppr_lt0 subr_gt0.
exact: lt1.
Qed.

Lemma sg_other k : k != first -> Num.sg (L k - (A zero k)%:R) = 1 :> F.
Proof.
move=> kf; have [gt0 _] := inv_bounds; apply: gtr0_sg; rewrite subr_gt0.
have : (A zero k)%:R <= residents%:R :> F by rewrite ler_nat load_other.
move/le_lt_trans; apply; rewrite targetE.
by rewrite residentsE ltr_add2l ltr_opp2 ltr_subl_addr ltr_addl.
Qed.

(* Every token now likes its home better than the first expert. *)
Lemma load_first_next : A (step zero) first = 0%N.
Proof.
apply/eqP; rewrite cards_eq0; apply/eqP/setP=> i; rewrite in_set in_set0; apply/negP.
move/picked_alone/(_ (Ordinal (home_lt i)))/negP; apply; apply/orP; left.
rewrite /biased /sign_step sg_first sg_other; last by rewrite -val_eqE.
by rewrite ler_lt_add ?score_home // !add0r !mul1r (lt_trans _ ltr01) // oppr_lt0 ltr01.
Qed.

End Attained.

Theorem sharp_band_attained (F : realFieldType) (E m : nat) : (1 < E)%N -> (0 < m)%N ->
  exists (T : nat) (scores : 'I_T -> 'I_E -> F) (u : F) (p : 'I_E -> F) (k : 'I_E),
  let L := even F T 1 in let q := sign_step 1 scores L u p in
  [/\ 0 < u, (multiplicity scores (2%:R * u) <= m)%N, `|(load 1 scores p k)%:R - L k| = 1 - E%:R^-1 &
      `|(load 1 scores q k)%:R - L k| = sharp_band F m E].
Proof.
move=> E_gt1 m_gt0; have [gt0 lt1] := inv_bounds F E_gt1.
exists (T E m), (tight_scores F (m := m)), 1, (fun=> 0), (first E_gt1); split=> //.
- exact: ltr01.
- exact: tight_multiplicity.
- rewrite (load_first F E_gt1 m_gt0) targetE // natrM natrB ?(ltnW E_gt1) // opprB addrCA subrr addr0.
  by rewrite ger0_norm // subr_ge0 ltW.
rewrite load_first_next // sub0r normrN ger0_norm; first by rewrite targetE.
by rewrite divr_ge0 ?ler0n.
Qed.
